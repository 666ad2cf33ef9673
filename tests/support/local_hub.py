"""A hub on this machine: repositories of small files over HTTP, one of them gated, and a token that counts."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "abcdefghij" * 3
COMMIT = "0123456789abcdef" * 2 + "01234567"
GATED = "meta-llama/gated"
FILES = {
    "models/open/model": {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"the same"},
    "models/old/model": {"config.json": b"{}", "pytorch_model.bin": b"weights", "training.log": b"..."},
    "datasets/some/data": {"or-bench-80k.csv": b"prompt,category\n", "other.csv": b"..."},
    "datasets/empty/data": {"README.md": b"nothing"},
}
"""Kind, id -> name -> content."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            self._send(200 if known else 401, json.dumps({"name": "somebody", "type": "user"}).encode(), with_body)
        elif path.startswith("/api/"):
            self._api(path.removeprefix("/api/"), with_body)
        else:
            found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            content = FILES.get(f"{found[1] or 'models/'}{found[2]}", {}).get(found[3]) if found else None
            if content is None:
                self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
            else:
                etag = hashlib.sha1(content).hexdigest()
                self._send(200, content, with_body, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def _api(self, path: str, with_body: bool) -> None:
        kind, owner, name, *rest = path.split("/")
        repository = f"{kind}/{owner}/{name}"
        if f"{owner}/{name}" == GATED:
            # its page is public, its files are not
            is_page = rest in ([], ["revision", "main"])
            self._send(200 if is_page else 403, self._about(repository), with_body, {"X-Error-Code": "GatedRepo"})
        elif repository not in FILES:
            self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES[repository].items()
            ]
            self._send(200, json.dumps(entries).encode(), with_body)
        else:
            self._send(200, self._about(repository), with_body)

    def _about(self, repository: str) -> bytes:
        names = [{"rfilename": name} for name in FILES.get(repository, {})]
        return json.dumps({"id": repository.split("/", 1)[1], "sha": COMMIT, "siblings": names}).encode()

    def _send(self, status: int, body: bytes, with_body: bool, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            if name != "X-Error-Code" or status != 200:
                self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@contextmanager
def local_hub() -> Iterator[str]:
    """Yield the address of the hub until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
