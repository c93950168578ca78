"""docs/errors.md lists every error that the source can raise, and nothing else."""

from tests.tools import errors_page


def test_the_page_is_what_the_source_says():
    made = errors_page.page()
    assert errors_page.PAGE.read_text(encoding="utf-8") == made, (
        "run python tests/tools/errors_page.py"
    )


def test_each_message_says_what_to_do():
    rows = [line.split(" | ") for line in errors_page.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row for row in rows if len(row) != 3 or not row[2].strip(" |")] == []


def test_a_message_is_read_off_its_parts():
    import ast

    call = ast.parse("""UserError(f"no {path}; " + "take {another}" + f" of {', '.join(names)}")""")
    assert errors_page._shape(call.body[0].value.args[0]) == "no {path}; take {another} of {names}"
    passed_on = ast.parse("UserError(str(error))").body[0].value.args[0]
    assert errors_page._shape(passed_on) == ""
