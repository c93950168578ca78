import concurrent.futures
import sys

import pytest

from vtalign_jax import remote
from vtalign_jax.errors import UserError


def read_objects(gcs, prefix=""):
    """The objects whose content was read, and forget what was asked before."""
    found = [name for method, name in gcs.requests if method == "READ" and name.startswith(prefix)]
    gcs.requests.clear()
    return found


@pytest.fixture
def dataset(bucket):
    """A folder of 50 files, more than a page of a listing."""
    for number in range(50):
        bucket.put(f"data/part/{number:02}", b"content of %d" % number)
    bucket.put("data/info", b"info")
    bucket.put("data/part/", b"")  # as the console makes a folder
    bucket.put("database/other", b"not asked for")
    return f"{bucket.url}/data"


def test_paths_of_this_machine_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(remote.path("runs/a")) == "runs/a"
    assert str(remote.path("~/a")) == f"{tmp_path}/a"
    assert str(remote.fetch("~/a")) == f"{tmp_path}/a"
    assert remote.absolute(remote.path("~/a")) == remote.path(f"{tmp_path}/a")
    assert not remote.is_remote(tmp_path)


def test_a_folder_is_tried_without_touching_what_lies_there(tmp_path):
    others = tmp_path / "page.html.new"
    others.write_text("being written")
    remote.check_writable(remote.path(tmp_path / "page.html"))
    assert [*tmp_path.iterdir()] == [others]
    assert others.read_text() == "being written"
    for wrong in (tmp_path, tmp_path / ("long" * 63), others / "page.html"):
        with pytest.raises(OSError, match=r"\[Errno"):
            remote.check_writable(remote.path(wrong))


def test_a_path_in_a_bucket_stays_one(bucket):
    given = f"{bucket.url}/run"
    assert str(remote.absolute(remote.path(given) / "checkpoints")) == f"{given}/checkpoints"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("s3://bucket/run", "neither a path of this machine nor gs://"),
        ("gs:///run", "names no bucket"),
        ("gs://nowhere/run", "cannot list bucket gs://nowhere \\(there is none\\)"),
    ],
)
def test_what_cannot_be_reached_is_the_users_error(gcs, given, told):
    with pytest.raises(UserError, match=told):
        remote.path(given)


def test_a_refusal_says_what_the_service_said(bucket):
    bucket.server.refuse = lambda method, name: 403
    with pytest.raises(UserError, match=r"Forbidden.*gcloud auth application-default login"):
        remote.path(bucket.url)
    bucket.server.refuse = lambda method, name: 0
    assert not remote.path(bucket.url + "/run").exists()  # a refusal is not remembered


def test_without_gcsfs_the_error_names_the_command(bucket, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"needs gcsfs.*pip install -e '\.\[gcs\]'"):
        remote.path(f"{bucket.url}/run")


def test_what_another_machine_wrote_is_seen(bucket):
    file = remote.path(f"{bucket.url}/run/mark")
    bucket.put("run/first", b"")
    assert [path.name for path in file.parent.iterdir()] == ["first"]  # a listing to remember
    assert not file.exists()
    bucket.put("run/mark", b"")
    assert file.exists()
    assert sorted(path.name for path in file.parent.iterdir()) == ["first", "mark"]


def test_a_file_is_written_whole_here_and_there(bucket, tmp_path):
    for folder in (str(tmp_path), f"{bucket.url}/run"):
        file = remote.path(folder) / "config.json"
        for text in ("old", "new"):
            remote.write_text(file, text)
            assert file.read_text() == text
        assert [path.name for path in file.parent.iterdir()] == ["config.json"]


def test_a_folder_is_copied_once_and_anew_when_it_has_changed(bucket, dataset, cache, capsys):
    folder = remote.fetch(dataset)
    assert folder.parent == cache
    assert sorted(path.name for path in folder.iterdir()) == ["info", "part"]
    assert len(list((folder / "part").iterdir())) == 50
    assert (folder / "part" / "07").read_bytes() == b"content of 7"
    assert f"copying {dataset} to {folder}: 51 files, 0.0 MB\n" in capsys.readouterr().out
    read_objects(bucket.server)
    assert remote.fetch(dataset) == folder
    assert read_objects(bucket.server, "data/part/") == []
    assert capsys.readouterr().out == ""
    bucket.put("data/part/07", b"changed")
    assert remote.fetch(dataset) != folder
    bucket.put("data/part/07", b"content of 7")
    assert remote.fetch(dataset) == folder  # it is named after what it holds


def test_a_copy_that_was_cut_off_goes_on_and_is_not_seen_before(bucket, dataset, cache, capsys):
    lost = {"data/part/30"}
    bucket.server.refuse = lambda method, name: 403 if name in lost else 0
    with pytest.raises(UserError, match=r"cannot copy .*the same command goes on"):
        remote.fetch(dataset)
    assert [path.name for path in cache.iterdir() if path.suffix == ""] == []
    bucket.server.refuse = lambda method, name: 0
    before = {path.name for path in cache.glob("*/part/??")}
    assert before
    read_objects(bucket.server)
    folder = remote.fetch(dataset)
    again = {name.removeprefix("data/part/") for name in read_objects(bucket.server, "data/part/")}
    assert "30" in again
    assert not again & before
    assert f"({len(before)} are there)" in capsys.readouterr().out or (folder / "info").exists()
    assert len(list((folder / "part").iterdir())) == 50
    assert not list(cache.glob("*.vtalign_partial"))


def test_two_processes_of_a_host_make_one_copy(bucket, dataset, cache):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(remote.fetch, [dataset, dataset]))
    assert folders[0] == folders[1]
    read = read_objects(bucket.server, "data/part/")
    assert len(read) == len(set(read)) == 50


def test_too_small_a_disk_is_told_before_anything_is_copied(bucket, dataset, cache, monkeypatch):
    read_objects(bucket.server)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda folder: type("", (), {"free": 10}))
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        remote.fetch(dataset)
    assert read_objects(bucket.server, "data/part/0") == []


def test_nothing_there_is_the_users_error(bucket, cache):
    with pytest.raises(UserError, match=f"there is no folder {bucket.url}/none"):
        remote.fetch(f"{bucket.url}/none")


@pytest.fixture
def folder(tmp_path):
    """A folder with a marker, to upload."""
    (tmp_path / "made" / "deep").mkdir(parents=True)
    for name in ("marker", "a", "deep/b", "z"):
        (tmp_path / "made" / name).write_text(f"text of {name}")
    return tmp_path / "made"


def test_an_upload_puts_the_marker_last_and_replaces_what_was_there(bucket, folder, cache):
    for name in ("out/marker", "out/old", "out/deep/old", "outside"):
        bucket.put(name, b"old")
    seen = []
    bucket.server.refuse = lambda *asked: seen.append((*asked, bucket.names("out/"))) or 0
    remote.upload(folder, f"{bucket.url}/out", "marker")
    assert bucket.names() == ["out/a", "out/deep/b", "out/marker", "out/z", "outside"]
    assert bucket.read("out/deep/b") == b"text of deep/b"
    # Whenever something was written, the mark of an upload lay there, or nothing had begun.
    changing = [names for method, _, names in seen if method not in ("GET", "READ")][1:]
    assert len(changing) > 6
    assert all(f"out/{remote.UPLOADING}" in names for names in changing)
    assert remote.fetch(f"{bucket.url}/out").is_dir()


def test_an_upload_that_was_cut_off_is_taken_for_none_and_goes_on(bucket, folder, cache):
    out = f"{bucket.url}/out"
    posts = []
    bucket.server.refuse = lambda method, name: (
        403 if method == "POST" and posts.append(name) is None and len(posts) > 3 else 0
    )
    with pytest.raises(UserError, match=r"cannot upload .*the same command goes on"):
        remote.upload(folder, out, "marker")
    assert "out/marker" not in bucket.names()
    sent = {name for name in bucket.names() if name != f"out/{remote.UPLOADING}"}
    assert sent
    with pytest.raises(UserError, match="is being uploaded, or that was cut off"):
        remote.fetch(out)
    posts = []
    bucket.server.refuse = lambda method, name: posts.append(method) or 0
    remote.upload(folder, out, "marker")
    assert bucket.names() == ["out/a", "out/deep/b", "out/marker", "out/z"]
    assert posts.count("POST") == 4 - len(sent) + 1  # and the mark of an upload


def test_growing_files_are_taken_over_and_never_lost(bucket):
    run = f"{bucket.url}/run"
    growing = remote.Growing(run)
    with (growing.folder / "metrics.jsonl").open("a") as file:
        (growing.folder / "tensorboard").mkdir()
        (growing.folder / "tensorboard" / "events").write_text("e")
        for line in ("one\n", "two\n"):
            file.write(line)
            file.flush()
            growing.upload()
            assert bucket.read("run/metrics.jsonl").endswith(line.encode())
        file.write("three\n")
        file.flush()
        growing.upload(every_seconds=60)  # too early
        assert bucket.read("run/metrics.jsonl") == b"one\ntwo\n"
    growing.close()
    assert not growing.folder.exists()
    assert bucket.names() == ["run/metrics.jsonl", "run/tensorboard/events"]
    later = remote.Growing(run)
    assert [path.name for path in later.folder.iterdir()] == ["metrics.jsonl"]
    assert (later.folder / "metrics.jsonl").read_text() == "one\ntwo\nthree\n"
    later.close()


def test_growing_files_of_this_machine_lie_where_they_are_asked_for(tmp_path):
    growing = remote.Growing(tmp_path)
    assert str(growing.folder) == str(tmp_path)
    growing.upload()
    growing.close()
    assert tmp_path.is_dir()
