"""A Hugging Face Hub on this machine: as much of its HTTP interface as uploading and downloading a model takes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_only_for_this_test"


class FakeHub:
    """Repositories in memory.

    Attributes:
        address: of the server.
        repositories: files of each, by path.
        private: names of the repositories that were made private.
    """

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}

    def create(self, wanted: dict[str, Any]) -> dict[str, str]:
        """Make a repository."""
        name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        self.repositories.setdefault(name, {})
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.private.add(name)
        return {"url": f"{self.address}/{name}"}

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> dict[str, str]:
        """Apply a commit: small files come with it, large ones came before."""
        files = self.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        return {"commitUrl": f"{self.address}/{repository}/commit/1", "commitOid": "1" * 40, "hookOutput": ""}


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """The server, as long as the block lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._send(401, {"error": "Invalid username or password."})
            if self.path == "/api/repos/create":
                return self._send(200, hub.create(json.loads(body)))
            if self.path == "/api/validate-yaml":
                return self._send(200, {"errors": [], "warnings": []})
            if match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
                names = [file["path"] for file in json.loads(body)["files"]]
                mode = {True: "lfs", False: "regular"}
                files = [
                    {"path": n, "uploadMode": mode[n.endswith(".safetensors")], "shouldIgnore": False} for n in names
                ]
                return self._send(200, {"files": files})
            if re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
                objects = [
                    {**item, "actions": {"upload": {"href": f"{hub.address}/lfs/{item['oid']}"}}}
                    for item in json.loads(body)["objects"]
                ]
                return self._send(200, {"transfer": "basic", "objects": objects})
            if match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
                return self._send(200, hub.commit(match[1], [json.loads(line) for line in body.splitlines()]))
            return self._send(404, {"error": self.path})

        def do_PUT(self) -> None:
            body, oid = self.rfile.read(int(self.headers["Content-Length"])), self.path.rsplit("/", 1)[1]
            if hashlib.sha256(body).hexdigest() != oid:
                return self._send(400, {"error": "the content does not match its digest"})
            hub.large[oid] = body
            return self._send(200, {})

        def do_GET(self) -> None:
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", self.path.split("?")[0]):
                files = hub.repositories.get(match[1])
                if files is None:
                    return self._send(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
                about = {"id": match[1], "sha": "1" * 40, "siblings": [{"rfilename": name} for name in files]}
                return self._send(200, about)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", self.path.split("?")[0]):
                files = hub.repositories[match[1]]
                listed = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
                return self._send(200, listed)
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
                content = hub.repositories[match[1]][match[2]]
                headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "1" * 40}
                return self._send(200, content, headers)
            return self._send(404, {"error": self.path})

        def do_HEAD(self) -> None:
            self.do_GET()

        def _send(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on the console."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
