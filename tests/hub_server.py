"""A Hugging Face hub on this machine: the requests that downloads make, and the faults that they meet.

Repositories are put in with `add`. What goes wrong with the answers about a file is a list of faults, one for each
answer; behind the last, all goes well.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".gguf", ".bin")
"""Files that git keeps elsewhere, and the hub on another host."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer.

    Attributes
    ----------
    after : int
        Bytes of the answer that are sent before it happens.
    hang : float
        Seconds of silence that follow; then the connection is closed.
    until : str
        A file; the silence ends when it is asked for.
    status : int
        An error in place of the answer.
    flip : bool
        The last byte is another one.
    cut : int
        Bytes that are missing at the end, as if the file were no longer; a number below zero adds some.
    ignore_range : bool
        The whole file is sent, though a part was asked for.
    """

    after: int = 0
    hang: float = 0.0
    until: str = ""
    status: int = 0
    flip: bool = False
    cut: int = 0
    ignore_range: bool = False


@dataclass
class Repository:
    """Commits with their files, and branches; `gated` lets those pass who know the token."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False


class HubServer:
    """The hub, from `start` to `stop`.

    Attributes
    ----------
    url : str
        Its endpoint.
    requests : list of (str, str, Mapping)
        Method, path and headers of all requests until now.
    faults : Mapping of str to list of Fault
        By the name of a file, or by `api`.
    listing : bytes or None
        What answers in place of the list of a repository.
    """

    TOKEN = "hf_sesame"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.listing: bytes | None = None
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, repo: str, folder: Path | Mapping[str, bytes], *, branch: str = "main", gated: bool = False) -> str:
        """Commit the files of a folder to a branch; returns the commit."""
        files = dict(folder) if isinstance(folder, Mapping) else _read(folder)
        digest = hashlib.sha1(json.dumps([(name, etag(name, files[name])) for name in sorted(files)]).encode())
        repository = self.repositories.setdefault(repo, Repository())
        repository.commits[digest.hexdigest()] = files
        repository.branches[branch] = digest.hexdigest()
        repository.gated = gated
        return digest.hexdigest()

    def paths(self, method: str = "GET") -> list[str]:
        """Return the paths of all requests of a method."""
        return [path for requested, path, _ in self.requests if requested == method]

    def downloads(self) -> list[str]:
        """Return the names of the files that were asked for."""
        return [path.split("/resolve/")[1].partition("/")[2] for path in self.paths() if "/resolve/" in path]


def etag(name: str, content: bytes) -> str:
    """Return what the hub calls the contents of a file."""
    if name.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _read(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server_hub, urlsplit(self.path).path
        hub.requests.append((self.command, unquote(path), {name.lower(): text for name, text in self.headers.items()}))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._list(match[1], unquote(match[2]))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._content(unquote(match[3]), hub.repositories[match[1]].commits[match[2]][unquote(match[3])])
        else:
            self._fail(404, "RepoNotFound")

    def _commit(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.server_hub.repositories.get(repo)
        if repository is None:
            self._fail(401, "RepoNotFound")  # as the hub answers those whom it does not know
            return None
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._fail(404, "RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _list(self, repo: str, revision: str) -> None:
        fault = self._fault("api")
        if fault.status:
            self._fail(fault.status, "")
        elif fault.hang:
            time.sleep(fault.hang)
            self.close_connection = True
        elif self.server_hub.listing is not None:
            self._send(200, self.server_hub.listing)
        elif found := self._commit(repo, revision):
            commit, files = found
            siblings: list[dict[str, Any]] = []
            for name, content in files.items():
                entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
                if name.endswith(LFS):
                    entry["lfs"] = {"sha256": etag(name, content), "size": len(content), "pointerSize": 134}
                else:
                    entry["blobId"] = etag(name, content)
                siblings.append(entry)
            self._send(200, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        found = self._commit(repo, revision)
        if found is None:
            return
        commit, files = found
        authorized = self.headers.get("Authorization") == f"Bearer {HubServer.TOKEN}"
        if self.server_hub.repositories[repo].gated and not authorized:
            self._fail(401 if "Authorization" not in self.headers else 403, "GatedRepo")
        elif name not in files:
            self._fail(404, "EntryNotFound")
        elif name.endswith(LFS):
            self.send_response(302)
            # Another host, to which no token goes.
            self.send_header("Location", f"http://localhost:{self.server_hub.port}/cdn/{repo}/{commit}/{name}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Etag", f'"{etag(name, files[name])}"')
            self.send_header("X-Linked-Size", str(len(files[name])))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._content(name, files[name], {"X-Repo-Commit": commit})

    def _content(self, name: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        fault, begin = self._fault(name), 0
        if fault.status:
            self._fail(fault.status, "")
            return
        if fault.flip:
            content = content[:-1] + bytes([content[-1] ^ 1])
        content = content[: len(content) - fault.cut] + bytes(max(0, -fault.cut))
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and not fault.ignore_range:
            begin = int(match[1])
        if begin >= len(content) > 0:
            self._fail(416, "")
            return
        headers = {"ETag": f'"{etag(name, content)}"', **(headers or {})}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._send(206 if begin else 200, content[begin:], headers, fault)

    def _fault(self, name: str) -> Fault:
        faults = self.server_hub.faults[name]
        return faults.pop(0) if faults and self.command == "GET" else Fault()

    def _send(
        self, status: int, content: bytes, headers: Mapping[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and (fault.after or fault.hang):
            self.wfile.write(content[: fault.after])
            self.wfile.flush()
            end = time.monotonic() + fault.hang
            while time.monotonic() < end and not (fault.until and fault.until in self.server_hub.downloads()):
                time.sleep(0.01)
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else {})
