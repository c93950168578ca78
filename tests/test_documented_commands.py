"""Every flag and field in the README, on the pages and in the scripts is one that exists."""

import re

import pytest

from tests.commands import ROOT, run_apart
from vtalign_jax.config import default_config

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "launch").glob("*.sh"))
COMMAND = re.compile(r"\bpython (launch/\w+\.py)([^\n`|]*)")
FLAG = re.compile(r"(?<!\S)--([\w.]+)(?:=(\S*))?")


def documented() -> dict[tuple[str, str, str], list[tuple[str, str]]]:
    """Return {(page, command, all that follows it): [(flag, value), ...]}."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        text = re.sub(r",\s+", " ", text)  # a command as a list, in YAML
        for command, rest in COMMAND.findall(text):
            rest = rest.split(" #")[0]
            found[page.name, command, rest] = FLAG.findall(rest)
    return found


COMMANDS = sorted({command for _, command, _ in documented()})
DOCUMENTED = [
    (page, command, flag, value)
    for (page, command, _), flags in documented().items()
    for flag, value in flags
]


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of each command, as its `--helpfull` lists them."""

    def names(command: str) -> set[str]:
        printed = run_apart(command, "--helpfull").stdout
        return {name for _, name in re.findall(r"--(\[no\])?(\w+)", printed)}

    return {command: names(command) for command in COMMANDS}


def test_the_commands_are_found():
    assert {"launch/train.py", "launch/prepare.py", "launch/doctor.py"} < set(COMMANDS)
    assert len(DOCUMENTED) > 60
    assert {page for page, *_ in DOCUMENTED} >= {"README.md", "pods.md", "pod.sh"}


def test_every_documented_flag_is_one_of_its_command(flags):
    assert all(len(names) > 3 for names in flags.values())
    unknown = [
        (page, command, flag)
        for page, command, flag, _ in DOCUMENTED
        if not flag.startswith("config.") and not {flag, flag.removeprefix("no")} & flags[command]
    ]
    assert unknown == []


def test_every_documented_field_is_one_of_the_configuration_and_takes_its_value(flags):
    wrong = []
    for page, command, flag, value in DOCUMENTED:
        if not flag.startswith("config."):
            continue
        assert "config" in flags[command], (page, command, flag)
        section, _, name = flag.removeprefix("config.").partition(".")
        fields = default_config().to_dict()
        if name not in fields.get(section, {}):
            wrong.append((page, flag))
            continue
        kind = type(fields[section][name])
        if value not in ("", "...") and kind in (int, float):
            kind(value)
    assert wrong == []


def test_every_documented_configuration_is_a_file():
    named = {value for _, _, flag, value in DOCUMENTED if flag == "config"}
    files = {value for value in named if "..." not in value}
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_every_documented_verb_of_the_pod_script_is_one():
    script = (ROOT / "launch" / "pod.sh").read_text(encoding="utf-8")
    verbs = set(re.search(r"^  ([\w |]+)\) \"\$@\" ;;$", script, re.MULTILINE)[1].split(" | "))
    page = (ROOT / "docs" / "pods.md").read_text(encoding="utf-8")
    named = set(re.findall(r"launch/pod\.sh (\w+)", page))
    assert {"create", "install", "run", "keep", "delete"} <= named <= verbs
