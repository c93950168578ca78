"""Opens pages in headless Chromium, in a process of its own; see tests/tools/open_page.py."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

WIDTHS = 1280, 390  # pixels: a desktop, a phone
SECTIONS = ["summary", "curves", "recall", "mask", "similarity", "gallery", "map", "grounding"]
SECTIONS += ["exports"]  # of a run's report
_OPENER = pathlib.Path(__file__).parent / "tools" / "open_page.py"


def browse(asked: list[str]) -> list[dict]:
    """Return what happened on each page; a browser that does not start fails with its reason.

    Args:
      asked: `WIDTH=PAGE.html` each.
    """
    done = subprocess.run(
        [sys.executable, str(_OPENER), *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["pages"]


def open_everywhere(pages: Sequence[pathlib.Path]) -> list[dict]:
    """Open pages at every width in one browser, check what holds of all; return what was seen.

    They say nothing on the console, ask for nothing but themselves, are no wider than the window
    (wide tables scroll in their own boxes), show every picture, bars are as long as the shares that
    they stand for, and charts answer a pointer.

    Args:
      pages: files.

    Returns:
      For each page as many as there are `WIDTHS`, as `tests/tools/open_page.py` has them.
    """
    asked = [(width, page) for page in pages for width in WIDTHS]
    visits = browse([f"{width}={page}" for width, page in asked])
    for (width, page), seen in zip(asked, visits, strict=True):
        assert seen["console"] == [], page
        assert [x.partition(":")[0] for x in seen["requests"]] == ["file"], page
        assert seen["width"] <= width, page
        assert seen["images"] == 0, page  # none is broken
        assert len(seen["bars"]) > 5, page
        for share, whole, wide in seen["bars"]:
            assert abs(wide - share * whole) < 0.1, page
        assert all(said.startswith("step ") for said in seen["touched"]), page
    return visits
