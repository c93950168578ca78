"""Opens pages in headless Chromium, in a process of its own; see tests/tools/open_page.py."""

import json
import pathlib
import subprocess
import sys

DESKTOP, PHONE = 1280, 390  # pixels
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
