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


# What would run, or unpickle, what a file says.
_RUNS = {"eval", "exec", "compile", "__import__", "system", "popen"}
_UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def _runs_data(node):
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] in _UNPICKLES for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in _UNPICKLES
    if not isinstance(node, ast.Call):
        return False
    owner = getattr(getattr(node.func, "value", None), "id", "")
    named = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    given = {word.arg: getattr(word.value, "value", word.value) for word in node.keywords}
    is_plain = isinstance(node.func, ast.Name) or owner == "os"
    return (
        (named in _RUNS and is_plain and not _names_a_package(node))
        or any(given.get(word) for word in ("shell", "trust_remote_code", "allow_pickle"))
        or (named == "load" and owner in ("np", "numpy") and given.get("allow_pickle") is not False)
        or (named == "load" and owner == "torch" and given.get("weights_only") is not True)
    )


def _names_a_package(node):
    return len(node.args) == 1 and node.args[0].__class__ is ast.Constant


def test_nothing_that_is_read_is_ever_run_or_unpickled():
    found = [
        f"{path}:{node.lineno}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in ("vtalign_jax", "launch", "data", "configs")
        for node in ast.walk(ast.parse(path.read_text()))
        if _runs_data(node)
    ]
    assert found == []


def test_what_would_run_data_is_seen():
    for line in (
        "import pickle",
        "from dill import loads",
        "eval(text)",
        "os.system(command)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ):
        assert any(map(_runs_data, ast.walk(ast.parse(line)))), line
