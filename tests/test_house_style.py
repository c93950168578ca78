import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("vtalign_jax", "launch", "configs", "data", "benchmarks", "tests")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_MAIN = 400, 60, 100


def test_no_file_is_longer_than_400_lines():
    lengths = {str(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert lengths
    assert {path: n for path, n in lengths.items() if n > MAX_FILE} == {}


def test_no_function_is_longer_than_60_lines_and_no_main_than_100():
    too_long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > (MAX_MAIN if node.name == "main" else MAX_FUNCTION):
                    too_long[f"{path}:{node.lineno} {node.name}"] = length
    assert too_long == {}
