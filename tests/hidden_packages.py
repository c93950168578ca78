"""Python as if some packages were not installed."""

_HIDE = """
import importlib.machinery, sys
hidden = {names!r}
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in hidden else find(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
"""


def hiding(*names: str) -> str:
    """Return the start of a script to which no finder shows these packages, nor to its imports."""
    return _HIDE.format(names=set(names))
