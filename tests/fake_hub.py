"""As much of the Hugging Face hub's HTTP interface as an upload needs, on this machine."""

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator

TOKEN = "hf_secret_of_the_tests"


class FakeHub:
    """Repositories in memory.

    Attributes:
      repositories: name -> {"private": bool, "files": {path: bytes}}.
      address: of the server.
      refuses: what every commit is refused with; "" for none.
    """

    def __init__(self):
        self.repositories, self.address, self.refuses = {}, "", ""

    def environment(self) -> dict[str, str]:
        """Return what makes a process use it."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, dict]:
        """Return the status and the JSON of one request."""
        if token != f"Bearer {TOKEN}" and method == "POST":
            return 401, {"error": "no token"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            is_private = asked.get("private") or asked.get("visibility") == "private"
            self.repositories.setdefault(name, {"private": bool(is_private), "files": {}})
            return 200, {"url": f"{self.address}/{name}", "id": name}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": f["path"], **modes} for f in json.loads(body)["files"]]}
        if "/commit/" in path:
            return self._commit(name, body, token)
        if name in self.repositories:
            return 200, self._described(name, is_tree="/tree/" in path)
        return 200, {}  # of what it is asked besides: metadata of the card, of the client

    def _described(self, name: str, *, is_tree: bool) -> dict | list:
        repository = self.repositories[name]
        files = {".gitattributes": b"", **repository["files"]}
        if is_tree:
            return [
                {"type": "file", "path": path, "size": len(content), "oid": "b" * 40}
                for path, content in files.items()
            ]
        siblings = [{"rfilename": path} for path in files]
        return {"id": name, "private": repository["private"], "siblings": siblings, "sha": "a" * 40}

    def _commit(self, name: str, body: bytes, token: str) -> tuple[int, dict]:
        if self.refuses:
            return 403, {"error": f"{self.refuses} {token}"}
        files = self.repositories[name]["files"]
        for line in body.splitlines():
            change = json.loads(line)
            if change["key"] == "file":
                files[change["value"]["path"]] = base64.b64decode(change["value"]["content"])
            elif change["key"] == "deletedFile":
                del files[change["value"]["path"]]
        oid = "a" * 40
        return 200, {"commitOid": oid, "commitUrl": f"{self.address}/{name}/commit/{oid}"}


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve a hub without repositories."""
    hub = FakeHub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _serve(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization", "")
            status, values = hub.answer(self.command, self.path.split("?")[0], body, token)
            sent = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_HEAD = _serve

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
