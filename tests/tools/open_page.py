"""Open pages from disk in headless Chromium (Qt WebEngine) and print what happened, as JSON.

python tests/tools/open_page.py [--dark] WIDTH[,PICTURE.png]=PAGE.html ...

A process of its own: a browser brings threads and an event loop that no test should share. For each
page: console messages, every request, width and height of the document, ids, and what `PROBE`
finds. With PICTURE the whole page is kept as an image.
"""

import json
import os
import sys
import traceback

os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QT_LOGGING_RULES"] = "*=false"
os.environ["QTWEBENGINE_DISABLE_SANDBOX"] = "1"  # as root; only pages of these tests are opened
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--disable-gpu"

if "--dark" in sys.argv:
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] += " --blink-settings=preferredColorScheme=0"

from PySide6.QtCore import QTimer, QUrl
from PySide6.QtWebEngineCore import (
    QWebEnginePage,
    QWebEngineProfile,
    QWebEngineSettings,
    QWebEngineUrlRequestInterceptor,
    qWebEngineChromiumVersion,
)
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

HEIGHT, LIMIT_MS, SETTLE_MS, PAINT_MS = 900, 60_000, 100, 4000
MOST_PIXELS = 16_000  # height of a picture
PROBE = """JSON.stringify({
  width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
  ids: [...document.querySelectorAll("[id]")].map((node) => node.id),
  images: [...document.images].filter((image) => !image.complete || !image.naturalWidth).length,
  scripts: document.scripts.length, text: document.body.innerText, title: document.title,
  bars: [...document.querySelectorAll(".share")].filter((bar) => bar.offsetParent).map((bar) => {
    const style = getComputedStyle(bar);
    return ["--share", "--whole", "width"].map((name) => parseFloat(style.getPropertyValue(name)));
  }),
  touched: [...document.querySelectorAll(".chart svg")].map((svg) => {
    const area = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent("pointermove", {clientX: area.left + area.width / 2}));
    const said = svg.parentNode.querySelector(".reading").textContent;
    svg.dispatchEvent(new PointerEvent("pointerleave"));
    return said;
  }),
})"""


class Watched(QWebEngineUrlRequestInterceptor):
    """Notes every request."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def interceptRequest(self, info):
        self.seen.append(info.requestUrl().toString()[:200])


class Page(QWebEnginePage):
    """Notes what scripts and the browser say on the console."""

    def __init__(self, profile, parent):
        super().__init__(profile, parent)
        self.said = []

    def javaScriptConsoleMessage(self, level, message, line, source):
        self.said.append(f"{level.name}: {message} ({line})")


class Visit:
    """One page at one width."""

    def __init__(self, asked, done):
        view, _, path = asked.partition("=")
        width, _, self.picture = view.partition(",")
        self.done, self.watched, self.profile = done, Watched(), QWebEngineProfile()
        self.profile.setUrlRequestInterceptor(self.watched)
        self.view = QWebEngineView()
        self.page = Page(self.profile, self.view)
        shown = QWebEngineSettings.WebAttribute.ShowScrollBars  # a phone lays them over the page
        self.page.settings().setAttribute(shown, False)
        self.view.setPage(self.page)
        self.view.resize(int(width), HEIGHT)
        self.view.show()
        self.view.loadFinished.connect(self._loaded)
        self.view.load(QUrl.fromLocalFile(os.path.abspath(path)))

    def _loaded(self, is_loaded):
        if not is_loaded:
            sys.exit("the page could not be loaded")
        self.page.runJavaScript(PROBE, self._probed)

    def _probed(self, found):
        self.found = json.loads(found)
        if self.picture:
            self.view.resize(self.view.width(), min(self.found["height"], MOST_PIXELS))
        QTimer.singleShot(SETTLE_MS, self._look)

    def _look(self):
        """Wait until the page has the picture's size, then for its pixels."""
        self.page.runJavaScript("window.innerHeight", self._sized)

    def _sized(self, height):
        if self.picture and abs(height - self.view.height()) > 1:
            QTimer.singleShot(SETTLE_MS, self._look)
        else:
            QTimer.singleShot(PAINT_MS if self.picture else 0, self._settled)

    def _settled(self):
        if self.picture:
            self.view.grab().save(self.picture)
        told = {"console": self.page.said, "requests": self.watched.seen}
        self.view.setPage(None)
        self.page.deleteLater()  # before its profile
        self.view.deleteLater()
        self.done(self.found | told)


def fail(*error):
    """End at an error in a callback, which Qt would let pass."""
    traceback.print_exception(*error)
    os._exit(1)


def main():
    sys.excepthook = fail
    app, asked, found = QApplication(sys.argv[:1]), [x for x in sys.argv[1:] if x != "--dark"], []
    QTimer.singleShot(LIMIT_MS, lambda: os._exit(3))
    visits = []

    def next_visit(result=None):
        if result is not None:
            found.append(result)
        if len(found) == len(asked):
            print(json.dumps({"chromium": qWebEngineChromiumVersion(), "pages": found}), flush=True)
            os._exit(0)  # Qt's own way out waits for profiles in an order of its own
        QTimer.singleShot(0, lambda: visits.append(Visit(asked[len(found)], next_visit)))

    next_visit()
    app.exec()


if __name__ == "__main__":
    main()
