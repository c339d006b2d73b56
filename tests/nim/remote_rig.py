"""Places to fetch from, on loopback: a bucket that speaks enough of S3, Google's storage, and Hugging Face's hub."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TIME = "2026-01-01T00:00:00.000Z"


class Place:
    """Files under one prefix; counts the bytes it sent, and breaks off when told."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.num_sent = 0
        self.break_after = 0  # bytes of the next answer, then the connection ends
        self.address = ""


class _Handler(BaseHTTPRequestHandler):
    place: Place
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        self._json({"error": "not here"}, 404)

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), {key: values[0] for key, values in parse_qs(url.query).items()}
        if path.startswith("/api/") or "/resolve/" in path:
            self._hub(path)
        elif path.startswith(("/storage/", "/download/")):
            self._google(path, query)
        else:
            self._bucket(path, query)

    def _bucket(self, path: str, query: dict[str, str]) -> None:
        """S3: ListObjectsV2, HEAD and ranged GET of path-style names."""
        name = path.strip("/").partition("/")[2]
        if "list-type" in query:
            prefix = query.get("prefix", "")
            rows = "".join(
                f'<Contents><Key>{key}</Key><Size>{len(data)}</Size><ETag>"{hashlib.md5(data).hexdigest()}"</ETag>'
                f"<LastModified>{TIME}</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
                for key, data in self.place.files.items()
                if key.startswith(prefix)
            )
            xml = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
            self._send(200, xml.encode(), {"Content-Type": "application/xml"})
        elif name in self.place.files:
            self._file(self.place.files[name])
        else:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", {"Content-Type": "application/xml"})

    def _google(self, path: str, query: dict[str, str]) -> None:
        """Google's JSON API: list, metadata, media."""
        name = path.partition("/o/")[2]
        if not name:
            prefix = query.get("prefix", "")
            items = [self._google_row(key) for key in self.place.files if key.startswith(prefix)]
            self._json({"kind": "storage#objects", "items": items})
        elif name not in self.place.files:
            self._json({"error": {"code": 404, "message": "not found"}}, 404)
        elif query.get("alt") == "media" or path.startswith("/download/"):
            self._file(self.place.files[name])
        else:
            self._json(self._google_row(name))

    def _google_row(self, name: str) -> dict[str, object]:
        size = str(len(self.place.files[name]))
        link = f"{self.place.address}/download/storage/v1/b/bucket/o/{name}"
        return {"kind": "storage#object", "name": name, "bucket": "bucket", "size": size, "updated": TIME,
                "timeCreated": TIME, "mediaLink": link, "generation": "1", "id": f"bucket/{name}/1"}  # fmt: skip

    def _hub(self, path: str) -> None:
        """Hugging Face: what HfFileSystem asks of a model repository."""
        resolved = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if resolved:
            name = resolved.group(2)
            data = self.place.files.get(name)
            return self._file(data) if data is not None else self._json({"error": "Entry not found"}, 404)
        if "/tree/" in path:
            return self._json([self._hub_row(name) for name in self.place.files])
        if "/paths-info/" in path:
            return self._json([self._hub_row(name) for name in self.place.files])
        repository = path.removeprefix("/api/models/").partition("/revision/")[0]
        rows = [{"rfilename": name} for name in self.place.files]
        return self._json({"_id": "1", "id": repository, "modelId": repository, "sha": COMMIT, "private": False,
                           "siblings": rows, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def _hub_row(self, name: str) -> dict[str, object]:
        data = self.place.files[name]
        row: dict[str, object] = {
            "type": "file",
            "path": name,
            "size": len(data),
            "oid": hashlib.sha1(data).hexdigest(),
        }
        if name.endswith(".safetensors"):
            row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return row

    def _file(self, data: bytes) -> None:
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{hashlib.md5(data).hexdigest()}"', "X-Repo-Commit": COMMIT,
                   "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}  # fmt: skip
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._send(200, data, headers)
        first = int(asked.group(1))
        last = min(int(asked.group(2) or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send(206, data[first : last + 1], headers)

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit, self.place.break_after = self.place.break_after, 0
        self.wfile.write(body[:limit] if limit else body)
        self.place.num_sent += len(body)
        if limit:
            self.close_connection = True


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Place]:
    """Serve files on a free port of loopback."""
    place = Place(files)
    handler = type("Handler", (_Handler,), {"place": place})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    place.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield place
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def model_files(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
