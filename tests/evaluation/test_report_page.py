"""The page as a reader gets it: whole, harmless, small, and at home in a browser of any width."""

import html.parser
import itertools
import json
import os
import pathlib
import re
import tomllib

import pytest

from tests.browser import SECTIONS, WIDTHS, open_everywhere
from tests.report_runs import HOSTILE, ORDINARY, make_run, write_json, write_rows
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.report import page
from vtalign_jax.evaluation.report.run import read_run

MOST_BYTES = 15e6


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "ordinary": make_run(folder / "ordinary", ORDINARY),
        # 10,000 clips; a file name can hold neither / nor as much as a text.
        "hostile": make_run(folder / HOSTILE[3].replace("/", "_"), HOSTILE, clips=10_000),
        "perfect": make_run(folder / "perfect", ORDINARY, noise=0.0),
    }


@pytest.fixture(scope="module")
def pages(runs):
    written = {name: page.write_report(workdir) for name, workdir in runs.items()}
    both = [runs["ordinary"], runs["hostile"]]
    compared = page.write_comparison(both, str(runs["ordinary"] / "comparison.html"))
    hostile = read_run(runs["hostile"])
    rows = {"chance": hostile.reference("chance"), "checkpoint": hostile.best}
    about = dict.fromkeys(("checkpoint", "dataset", "command"), HOSTILE[0])
    out = str(runs["ordinary"] / "evaluation.html")
    evaluated = page.write_evaluation(out, HOSTILE[1], about, rows, hostile.sample)
    return written | {"comparison": compared, "evaluation": evaluated}


class Reader(html.parser.HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.addresses, self.tags, self.handlers = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                self.addresses.append(value)
            if name.startswith("on"):
                self.handlers.append(name)


@pytest.mark.parametrize("name", ["ordinary", "hostile", "perfect"])
def test_every_section_is_there_and_nothing_points_outside(pages, name):
    text = pages[name].read_text()
    found = Reader(text)
    assert found.ids == SECTIONS
    assert {x for x in found.addresses if not x.startswith(("#", "data:"))} == set()
    assert found.handlers == []
    assert len(text.encode()) < MOST_BYTES
    assert "url(" not in text
    assert "@import" not in text


def test_names_are_shown_as_they_are_and_never_as_markup(pages):
    plain, hostile = (pages[name].read_text() for name in ("ordinary", "hostile"))
    assert set(Reader(hostile).tags) == set(Reader(plain).tags)
    assert Reader(hostile).tags.count("script") == Reader(plain).tags.count("script")
    assert "&lt;script&gt;document.title" in hostile
    assert "{{ 7 * 7 }}" in hostile  # no template is filled with names
    longest = max(re.findall(r"w{50,}", hostile), key=len)
    assert 90 < len(longest) <= 600  # whole on hover, as far as it was kept
    assert "… (20,000 characters)" in hostile


def test_a_browser_opens_every_page_without_a_complaint_or_a_request(pages):
    visits = iter(open_everywhere(list(pages.values())))
    others = {
        "comparison": ["figures", "curves", "differences"],
        "evaluation": ["summary", "recall", "similarity", "gallery", "map"],
    }
    for name in pages:
        for seen in itertools.islice(visits, len(WIDTHS)):
            assert seen["title"] != "owned"
            assert seen["ids"] == others.get(name, SECTIONS)
            assert (len(seen["touched"]) > 5) is (name != "evaluation")  # charts


def test_figures_stand_on_the_page(pages):
    text = pages["ordinary"].read_text()
    assert 'class="bad">UNVERIFIED<' in text
    for shown in ("0.750", "0.200 to 0.900", "UNVERIFIED", "passed", "1.0000000", "IoU 0.80"):
        assert shown in text, shown
    assert text.count('class="card"') >= 12
    assert "Pictures are left out" in text  # the dataset was never there
    assert "None: no wrong answer leads" in pages["perfect"].read_text()


def test_a_run_that_has_only_begun_says_what_is_missing(tmp_path):
    write_json(tmp_path / "config.json", {"data": {"dir": "nowhere"}})
    text = page.write_report(tmp_path).read_text()
    assert Reader(text).ids == SECTIONS
    for told in ("Nothing was logged yet", "Nothing was evaluated yet", "None yet", "the next one"):
        assert told in text


def test_a_run_killed_in_its_first_evaluation_is_drawn(tmp_path):
    workdir = make_run(tmp_path / "run", ORDINARY)
    first = (workdir / "evaluations.jsonl").read_text().splitlines(keepends=True)[0]
    (workdir / "metrics.jsonl").write_text("")
    (workdir / "evaluations.jsonl").write_text(first)  # of chance alone
    assert "40 clips, 4 distinct texts" in page.write_report(workdir).read_text()
    write_rows(workdir / "evaluations.jsonl", [json.loads(first) | {"metrics": {"recall@1": 0.1}}])
    assert Reader(page.write_report(workdir).read_text()).ids == SECTIONS


def test_a_picture_of_an_earlier_search_is_not_shown(tmp_path):
    workdir = make_run(tmp_path / "run", ORDINARY)
    assert "With frames" in page.write_report(workdir).read_text()
    document = json.loads((workdir / "grounding" / "video.json").read_text())
    write_json(workdir / "grounding" / "video.json", document | {"picture": None})
    assert "With frames" not in page.write_report(workdir).read_text()


def test_the_newest_searches_and_exports_are_shown_below_the_summary_and_the_rest_counted(tmp_path):
    workdir = make_run(tmp_path / "run", ORDINARY)
    document = (workdir / "grounding" / "video.json").read_text()
    export = (workdir / "exports" / "peft" / "certificate.json").read_text()
    for n in range(12):  # seconds of 1970
        file = workdir / "grounding" / f"video_{n:02}.json"
        file.write_text(json.dumps(json.loads(document) | {"video": file.stem, "picture": None}))
        os.utime(file, (n, n))
        file = workdir / "exports" / f"peft_{n:02}" / "certificate.json"
        file.parent.mkdir()
        file.write_text(export)
        os.utime(file, (n, n))
    summary = workdir / "grounding" / "summary.json"
    write_json(summary, {"video": "12 videos", "videos": [], "texts": []})
    os.utime(summary, (0, 0))  # however old
    run = read_run(workdir)
    videos = ["video.json", *(f"video_{n:02}.json" for n in range(5, 12))]
    assert [name for name, _, _ in run.grounding] == ["summary.json", *videos]
    exports = ["merged", "peft", *(f"peft_{n:02}" for n in range(2, 12))]
    assert [name for name, _ in run.exports] == exports
    text = page.write_report(workdir).read_text()
    assert "5 more videos, searched before these" in text
    assert "2 older ones are in the folder exports" in text


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    write_json(tmp_path / "config.json", {})
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.html: .*name another file"):
        page.write_report(tmp_path)


def test_files_that_cannot_be_read_are_named_and_the_rest_is_drawn(tmp_path):
    workdir = make_run(tmp_path / "run", ORDINARY)
    (workdir / "evaluation_sample.npz").write_bytes(b"PK\x03\x04 nothing of the kind")
    (workdir / "confused.jsonl").write_text("[]\n")
    (workdir / "grounding" / "video.json").write_text("[1, 2]")
    (workdir / "grounding" / "odd.json").write_text('{"texts": [3, {"spans": "x"}], "metrics": 1}')
    write_json(workdir / "exports" / "merged" / "certificate.json", {"results": [{"torch": 1}]})
    warnings = []
    text = page.write_report(workdir, warn=warnings.append).read_text()
    for name in ("evaluation_sample.npz", "confused.jsonl", "video.json"):
        assert f"Could not be read: <bdi>{name}" in text or f"{name}:" in text
        assert any(name in line for line in warnings)
    assert "certificate not understood" in text
    assert "0.200 to 0.900" in text


@pytest.mark.parametrize("damaged", ['{"data": ', '{"data": 3}'])
def test_a_run_whose_configuration_is_damaged_is_drawn_and_compared(tmp_path, damaged):
    """Nor does training, which goes by its checkpoints, stop at it."""
    runs = [make_run(tmp_path / each, ORDINARY) for each in ("a", "b")]
    (runs[1] / "config.json").write_text(damaged)
    text = page.write_report(runs[1]).read_text()
    assert "Could not be read: <bdi>config.json" in text
    assert "0.200 to 0.900" in text
    warnings = []
    text = page.write_comparison(runs, str(tmp_path / "both.html"), warnings.append).read_text()
    assert "could not be read: <bdi>config.json" in text
    assert "tune.rank" not in text  # of one run alone
    (warning,) = warnings
    assert warning.startswith("b: could not be read: config.json")


def test_runs_from_before_intervals_are_read_from_their_metrics(tmp_path):
    workdir = make_run(tmp_path / "run", ORDINARY)
    whole = read_run(workdir)
    evaluations = (workdir / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (workdir / "evaluations.jsonl").write_text("".join(evaluations[-1:]))  # it was gone on with
    resumed = read_run(workdir)
    assert [(e.step, e.row) for e in resumed.evaluations] == [
        (e.step, e.row) for e in whole.evaluations
    ]
    assert resumed.best.intervals == whole.best.intervals != {}
    (workdir / "evaluations.jsonl").unlink()
    older = read_run(workdir)
    assert [(e.step, e.row) for e in older.evaluations] == [
        (e.step, e.row) for e in whole.evaluations
    ]
    assert older.best.metrics == whole.best.metrics
    assert (older.best.step, older.best.intervals) == (30, {})


def test_a_comparison_shows_figures_curves_and_what_differs(tmp_path):
    runs = [make_run(tmp_path / each / "run", ORDINARY) for each in ("a", "b")]
    changed = json.loads((runs[1] / "config.json").read_text())
    changed["tune"]["rank"] = 77
    write_json(runs[1] / "config.json", changed)
    text = page.write_comparison(runs, str(tmp_path / "both.html")).read_text()
    assert "tune.rank" in text
    assert "77" in text
    assert "tune.alpha" not in text  # equal
    assert str(runs[0]) in text  # both are called run
    assert "different datasets" not in text
    for count in (1, 9):
        with pytest.raises(UserError, match="two to 8"):
            page.write_comparison([runs[0]] * count, str(tmp_path / "no.html"))


def test_what_is_no_workdir_is_told(tmp_path):
    with pytest.raises(UserError, match="is it a workdir"):
        page.write_report(tmp_path)


def test_the_templates_travel_with_the_package():
    root = pathlib.Path(page.__file__).parents[3]
    packaged = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = packaged["package-data"]["vtalign_jax.evaluation.report"]
    folder = pathlib.Path(page.__file__).parent
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    assert found == set((folder / "templates").iterdir())
