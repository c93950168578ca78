"""A server on this machine that speaks as much of Google Cloud Storage's JSON API as we use.

Real HTTP, so that what asks is the real client: gcsfs (below epath), TensorStore (below Orbax) and
google-cloud-storage (Orbax asks it for the kind of a bucket). Everything is kept in memory.

Source: https://cloud.google.com/storage/docs/json_api/v1
"""

import base64
import contextlib
import dataclasses
import email
import hashlib
import http.server
import json
import pathlib
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import NamedTuple

_PAGE = 20  # entries of a listing's page: few, so that every client has to turn pages
_TIME = "2026-01-01T00:00:00.000Z"


@dataclasses.dataclass
class Stored:
    data: bytes
    generation: int
    content_type: str = "application/octet-stream"


class Bucket(NamedTuple):
    """One bucket.

    Attributes:
      server: that holds it.
      name: of it.
    """

    server: "FakeGcs"
    name: str

    @property
    def url(self) -> str:
        return f"gs://{self.name}"

    def names(self, prefix: str = "") -> list[str]:
        """Return the objects below a prefix, sorted."""
        return sorted(name for name in self.server.buckets[self.name] if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        return self.server.buckets[self.name][name].data

    def put(self, name: str, data: bytes) -> None:
        """Write an object as another machine would."""
        self.server.put(self.name, name, data)

    def put_folder(self, folder: pathlib.Path, prefix: str) -> None:
        """Write every file of a folder."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())


class FakeGcs:
    """The buckets.

    Attributes:
      url: of the server.
      buckets: `{bucket: {object: Stored}}`.
      requests: (method, object or prefix) of all that was asked, in order; the method of a GET of
        an object's content is READ.
      refuse: called with them; an HTTP status refuses the request with it, 0 lets it pass.
    """

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], int] = lambda method, name: 0
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}
        self.lock = threading.RLock()
        self._generation = 0
        self.url = ""

    def environment(self) -> dict[str, str]:
        """Return the variables that lead every client here, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_CLOUD_PROJECT": "project",
            "GCE_METADATA_ROOT": self.url.removeprefix("http://"),  # where there is no metadata
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks another service, by gRPC
        }

    def put(self, bucket: str, name: str, data: bytes, match: int | None = None) -> Stored | int:
        """Write an object; return it, or the HTTP status that refuses it.

        Args:
          bucket: of it.
          name: of it.
          data: its content.
          match: the generation that must stand there, 0 for none; None for any.
        """
        with self.lock:
            if bucket not in self.buckets:
                return 404
            before = self.buckets[bucket].get(name)
            if match is not None and match != (before.generation if before else 0):
                return 412
            self._generation += 1
            self.buckets[bucket][name] = Stored(data, self._generation)
            return self.buckets[bucket][name]

    def make_bucket(self) -> Bucket:
        """Return an empty bucket of a new name."""
        name = f"bucket-{len(self.buckets)}"
        self.buckets[name] = {}
        return Bucket(self, name)


@contextlib.contextmanager
def serve() -> Iterator[FakeGcs]:
    """Give a server without buckets."""
    gcs = FakeGcs()
    handler = type("Handler", (_Handler,), {"gcs": gcs})
    server = _Server(("127.0.0.1", 0), handler)
    gcs.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    try:
        yield gcs
    finally:
        server.shutdown()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that close early, as those do that were killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    gcs: FakeGcs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        for name, (pattern, method) in _ROUTES.items():
            values = _match(pattern, parts)
            if values is not None and self.command in method:
                about = values.get("name") or self._named()
                asked = ("READ" if self.query.get("alt") == "media" else self.command, about)
                self.gcs.requests.append(asked)
                if status := self.gcs.refuse(*asked):
                    self._fail(status)
                else:
                    getattr(self, name)(**values)
                return
        self._fail(404 if parts[0] != "storage" else 501)

    do_POST = do_PUT = do_DELETE = do_GET

    def _named(self) -> str:
        """Return the object to write, or the prefix of a listing."""
        if self.query.get("uploadType") == "multipart":
            return _parts(self.headers["Content-Type"], self.body)[0]["name"]
        return self.query.get("name") or self.query.get("prefix", "")

    # Buckets.

    def _bucket(self, bucket: str) -> None:
        if bucket not in self.gcs.buckets:
            self._fail(404)
        else:
            self._json({"kind": "storage#bucket", "id": bucket, "name": bucket})

    def _list(self, bucket: str) -> None:
        if bucket not in self.gcs.buckets:
            self._fail(404)
            return
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        first, end = self.query.get("startOffset", ""), self.query.get("endOffset", "")
        with self.gcs.lock:
            stored = dict(self.gcs.buckets[bucket])
        entries: dict[str, Stored | None] = {}  # objects, and prefixes as None
        for name in sorted(stored):
            if not name.startswith(prefix) or name < first or (end and name >= end):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            if cut < 0:
                entries[name] = stored[name]
            else:
                entries[name[: cut + len(delimiter)]] = None
        after = base64.b64decode(self.query.get("pageToken", "")).decode()
        names = [name for name in entries if name > after]
        most = min(_PAGE, int(self.query.get("maxResults", _PAGE)))
        page = names[:most]
        answer = {
            "kind": "storage#objects",
            "items": [_resource(bucket, n, entries[n]) for n in page if entries[n] is not None],
            "prefixes": [name for name in page if entries[name] is None],
        }
        if len(names) > most:
            answer["nextPageToken"] = base64.b64encode(page[-1].encode()).decode()
        self._json(answer)

    # Objects.

    def _get(self, bucket: str, name: str) -> None:
        found = self.gcs.buckets.get(bucket, {}).get(name)
        if found is None:
            self._fail(404)
        elif self.query.get("ifGenerationNotMatch") == str(found.generation):
            self._send(304, b"")
        elif self.query.get("ifGenerationMatch", str(found.generation)) != str(found.generation):
            self._fail(412)
        elif self.query.get("alt") == "media":
            self._media(found)
        else:
            self._json(_resource(bucket, name, found))

    def _media(self, found: Stored) -> None:
        headers = {
            "x-goog-generation": str(found.generation),
            "x-goog-hash": f"md5={_md5(found.data)}",
            "Content-Type": found.content_type,
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self._send(200, found.data, headers)
            return
        size = len(found.data)
        if asked[1]:
            begin, end = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
        else:  # the last bytes
            begin, end = max(size - int(asked[2]), 0), size
        if begin >= size:
            self._fail(416)
            return
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self._send(206, found.data[begin:end], headers)

    def _delete(self, bucket: str, name: str) -> None:
        with self.gcs.lock:
            found = self.gcs.buckets.get(bucket, {}).get(name)
            if found is None:
                self._fail(404)
            elif self.query.get("ifGenerationMatch", str(found.generation)) != str(
                found.generation
            ):
                self._fail(412)
            else:
                del self.gcs.buckets[bucket][name]
                self._send(204, b"")

    def _copy(self, bucket: str, name: str, other_bucket: str, other: str) -> None:
        found = self.gcs.buckets.get(bucket, {}).get(name)
        if found is None:
            self._fail(404)
            return
        stored = self.gcs.put(other_bucket, other, found.data, self._generation_wanted())
        self._stored(other_bucket, other, stored, lambda x: {"done": True, "resource": x})

    def _move(self, bucket: str, name: str, other: str) -> None:
        with self.gcs.lock:
            found = self.gcs.buckets.get(bucket, {}).pop(name, None)
            if found is None:
                self._fail(404)
            else:
                self._stored(bucket, other, self.gcs.put(bucket, other, found.data))

    def _upload(self, bucket: str) -> None:
        kind, match = self.query["uploadType"], self._generation_wanted()
        if kind == "media":
            name, data = self.query["name"], self.body
        elif kind == "multipart":
            described, data = _parts(self.headers["Content-Type"], self.body)
            name = described["name"]
        else:
            name = self.query.get("name") or json.loads(self.body)["name"]
            key = str(len(self.gcs.uploads))
            self.gcs.uploads[key] = (bucket, name, bytearray())
            place = f"{self.gcs.url}/resumable/{key}"
            self._send(200, b"", {"Location": place})
            return
        self._stored(bucket, name, self.gcs.put(bucket, name, data, match))

    def _resume(self, key: str) -> None:
        bucket, name, received = self.gcs.uploads[key]
        received += self.body
        if self.headers.get("Content-Range", "").endswith("/*"):  # more is to come
            self._send(308, b"", {"Range": f"bytes=0-{len(received) - 1}"} if received else {})
        else:
            self._stored(bucket, name, self.gcs.put(bucket, name, bytes(received)))

    def _stored(
        self,
        bucket: str,
        name: str,
        stored: Stored | int,
        answer: Callable[[dict], dict] = lambda resource: resource,
    ) -> None:
        if isinstance(stored, int):
            self._fail(stored)
        else:
            self._json(answer(_resource(bucket, name, stored)))

    def _generation_wanted(self) -> int | None:
        wanted = self.query.get("ifGenerationMatch")
        return None if wanted is None else int(wanted)

    # Answers.

    def _json(self, value: dict) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int) -> None:
        said = {"error": {"code": status, "message": f"{self.command} {self.path}: {status}"}}
        self._send(status, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


_OBJECT = "storage/v1/b/{bucket}/o/{name}"
_ROUTES = {
    "_list": ("storage/v1/b/{bucket}/o", "GET"),
    "_bucket": ("storage/v1/b/{bucket}", "GET"),
    "_copy": (f"{_OBJECT}/rewriteTo/b/{{other_bucket}}/o/{{other}}", "POST"),
    "_move": (f"{_OBJECT}/moveTo/o/{{other}}", "POST"),
    "_get": (_OBJECT, "GET"),
    "_delete": (_OBJECT, "DELETE"),
    "_upload": ("upload/storage/v1/b/{bucket}/o", "POST"),
    "_resume": ("resumable/{key}", "POST PUT"),
}


def _match(pattern: str, parts: list[str]) -> dict[str, str] | None:
    """Return the values of a pattern's places, None if the path is another one."""
    parts = parts[1:] if parts[0] == "download" else parts
    wanted = pattern.split("/")
    if len(wanted) != len(parts):
        return None
    values = {}
    for want, part in zip(wanted, parts, strict=True):
        if want.startswith("{"):
            values[want.strip("{}")] = part
        elif want != part:
            return None
    return values


def _resource(bucket: str, name: str, stored: Stored) -> dict:
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{stored.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(stored.generation),
        "metageneration": "1",
        "contentType": stored.content_type,
        "size": str(len(stored.data)),
        "md5Hash": _md5(stored.data),
        "timeCreated": _TIME,
        "updated": _TIME,
    }


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def _parts(content_type: str, body: bytes) -> tuple[dict, bytes]:
    """Return the description and the content of a multipart upload."""
    boundary = email.message_from_string(f"Content-Type: {content_type}\n\n").get_boundary()
    _, described, data, _ = re.split(rb"(?:\r?\n)?--" + re.escape(boundary.encode()), body)
    described, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (described, data))
    return json.loads(described), data
