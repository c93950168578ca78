"""Lets torchvision be imported beside a CPU build of torch.

The torchvision wheel of the package index carries operators compiled against a CUDA build of torch.
Beside a CPU build they do not load, and `import torchvision` ends in "operator torchvision::nms
does not exist", although Hugging Face's video processors need none of them. Imported at start-up
(by a `.pth` line), this module waits until torchvision is really imported and then declares its
operators without implementation. Beside a torch whose torchvision does load, it changes nothing.

`python torchvision_operators.py` installs it into the running interpreter's environment.
"""

import importlib.abc
import importlib.machinery
import pathlib
import re
import shutil
import sys
import sysconfig

_declared = []  # keeps the libraries alive: torch drops an operator with its Library


class _DeclaringLoader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module) -> None:
        _declare(pathlib.Path(self.path).parent)
        super().exec_module(module)


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin:
            spec.loader = _DeclaringLoader(fullname, spec.origin)
        return spec


def _declare(package: pathlib.Path) -> None:
    """Declare every operator named in `_meta_registrations.py`, unless the compiled ones load."""
    import torch

    try:
        torch.ops.load_library(next(package.glob("_C*.so")))
        return
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
    source = (package / "_meta_registrations.py").read_text()
    for name in re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source):
        library.define(f"{name}() -> ()")
    _declared.append(library)


def _install() -> None:
    site = pathlib.Path(sysconfig.get_path("purelib"))
    shutil.copy(__file__, site / "torchvision_operators.py")
    (site / "torchvision_operators.pth").write_text("import torchvision_operators\n")


if __name__ == "__main__":
    _install()
elif not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _TorchvisionFinder())
