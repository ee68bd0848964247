"""A small model hub over HTTP, enough of one for the real client of the Hugging Face hub: HF_ENDPOINT points to it."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
OTHER_COMMIT = "d" * 40


class HubServer:
    """Serves folders as models; `failing` gives a path's beginning another status, with the hub's error code."""

    def __init__(self, models: Mapping[str, Path]) -> None:
        self.models = dict(models)
        self.revisions = {"main": COMMIT, COMMIT: COMMIT}
        self.failing: dict[str, tuple[int, str]] = {}
        self.requests: list[str] = []
        server = self

        class Handler(_Handler):
            hub = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class MuteServer:
    """Takes connections and never answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for start, (status, code) in self.hub.failing.items():
            if path.startswith(start):
                self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "as the test wants it"})
                return
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._answer_api("/".join(parts[2:4]), parts[4:])
        elif parts[2:3] == ["resolve"]:
            self._answer_file("/".join(parts[:2]), parts[3:])
        else:
            self._send(404, b"{}", {})

    def _folder(self, model: str) -> Path | None:
        folder = self.hub.models.get(model)
        if folder is None:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        return folder

    def _answer_api(self, model: str, rest: list[str]) -> None:
        """`/api/models/NAME`, `/revision/REVISION`, `/tree/COMMIT`."""
        folder = self._folder(model)
        commit = self.hub.revisions.get(rest[1] if rest else "main")
        if folder is None or not self._has_revision(commit):
            return
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        if rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in names.items()]
            self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            return
        siblings = [{"rfilename": name, "size": size} for name, size in names.items()]
        info = {"id": model, "modelId": model, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _answer_file(self, model: str, rest: list[str]) -> None:
        """`/NAME/resolve/REVISION/FILE`."""
        folder = self._folder(model)
        commit = self.hub.revisions.get(rest[0])
        if folder is None or not self._has_revision(commit):
            return
        path = folder / "/".join(rest[1:])
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": str(commit)})
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": str(commit)}
        self._send(200, content, headers)

    def _has_revision(self, commit: str | None) -> bool:
        if commit is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        return commit is not None

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
