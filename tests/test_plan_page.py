"""docs/plan.md names code and tests that exist, and every line of the plan has both or says so."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "plan.md"
HEADER = "| the plan | code | test | difference, and why |"
NAME = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def table_rows():
    """Return the cells of each row of the tables below `HEADER`."""
    rows, is_inside = [], False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        is_inside = line == HEADER or (is_inside and line.startswith("|"))
        if is_inside and line != HEADER and not line.startswith("|---"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


ROWS = table_rows()


def is_there(root: pathlib.Path, file: str, name: str) -> bool:
    """Return whether a file below `root` defines a name, or a class's, at its outermost level."""
    path = root / file
    return path.is_file() and name in names_of(path)


@functools.cache
def names_of(path: pathlib.Path) -> set[str]:
    return set(_defined(ast.parse(path.read_text(encoding="utf-8")), ""))


def _defined(node: ast.Module | ast.ClassDef, prefix: str):
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield prefix + child.name
        if isinstance(child, ast.ClassDef):
            yield from _defined(child, f"{prefix}{child.name}.")
        targets = getattr(child, "targets", None) or [getattr(child, "target", None)]
        yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def code_root(file: str) -> pathlib.Path:
    is_outside = file.split("/")[0] in ("launch", "configs", "benchmarks", "data")
    return ROOT if is_outside else ROOT / "vtalign_jax"


def test_each_section_has_a_table():
    sections = re.findall(r"^## (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sections == ["Model", "Objective", "Training", "Evaluation"]
    assert PAGE.read_text(encoding="utf-8").count(HEADER) == len(sections)
    assert len(ROWS) > 50


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_a_line_of_the_plan_has_code_and_tests_that_exist_or_says_not_yet(row):
    plan, code, tests, difference = row
    assert plan
    assert difference
    found = {"code": NAME.findall(code), "tests": NAME.findall(tests)}
    assert len(found["code"]) == code.count("`") // 2
    assert len(found["tests"]) == tests.count("`") // 2
    if difference.startswith("Not yet"):
        assert found == {"code": [], "tests": []}
        return
    assert found["code"]
    assert found["tests"]
    absent = [name for name in found["code"] if not is_there(code_root(name[0]), *name)]
    absent += [name for name in found["tests"] if not is_there(ROOT / "tests", *name)]
    assert absent == []
    assert all(name.startswith("test_") for _, name in found["tests"])
