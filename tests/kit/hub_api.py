"""A stand-in of the Hugging Face hub's API on a local port: repositories, one-commit uploads, large files over LFS."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_" + "aB3" * 11
LARGE = (".safetensors", ".onnx")


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)
    """Messages."""


@dataclass
class Hub:
    """State of the stand-in. ``faults``: regular expression of "METHOD path" -> (status, headers, body) to answer."""

    url: str = ""
    owner: str = "me"
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, tuple[int, dict[str, str], str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def answer(self, request: str, body: bytes, token: str | None) -> tuple[int, dict[str, str], Any]:
        self.requests.append(request)
        for pattern, fault in self.faults.items():
            if re.search(pattern, request):
                return fault
        if request.startswith("PUT /lfs/"):  # as at S3: the address is the permission
            oid = request.removeprefix("PUT /lfs/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.blobs[oid] = body
            return 200, {}, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, {"error": "Unauthorized"}
        if request == "POST /api/repos/create":
            return self.create(json.loads(body))
        if request == "POST /api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": [{"message": text} for text in self.warnings]}
        found = re.fullmatch(r"(\w+) (?:/api/models)?/([\w.-]+/[\w.-]+?)(?:\.git)?(?:/(.*))?", request)
        if found is None or found[2] not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        return self.of_repo(found[2], f"{found[1]} {unquote(found[3] or '')}", body)

    def create(self, wanted: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        owner = wanted["organization"] or self.owner
        if owner != self.owner:
            return 403, {}, {"error": f'You don\'t have the rights to create a model under the namespace "{owner}"'}
        name = f"{owner}/{wanted['name']}"
        made = {"url": f"{self.url}/{name}", "id": name}
        if name in self.repos:
            return 409, {}, made | {"error": "You already created this model repo"}
        self.repos[name] = Repo(wanted.get("private", wanted.get("visibility") == "private"))
        return 200, {}, made

    def of_repo(self, name: str, request: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        repo = self.repos[name]
        action, _, rest = request.partition("/")
        if request == "GET " or (action == "GET revision" and rest in repo.branches):
            return 200, {}, {"id": name, "private": repo.private, "sha": self.commit_id(repo), "tags": []}
        if action == "POST branch":
            is_new = rest not in repo.branches
            repo.branches.setdefault(rest, dict(repo.branches["main"]))
            return 200 if is_new else 409, {}, {}
        if request == "POST info/lfs/objects/batch":
            return 200, {}, {"transfer": "basic", "objects": [self.context(one) for one in json.loads(body)["objects"]]}
        if rest not in repo.branches:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": f"Invalid rev id: {rest}"}
        if action == "GET tree":
            return 200, {}, [self.entry(path, content) for path, content in repo.branches[rest].items()]
        if action == "POST preupload":
            files = json.loads(body)["files"]
            return 200, {}, {"files": [self.mode(repo.branches[rest], file["path"]) for file in files]}
        if action != "POST commit":  # Xet storage, which this hub does not have
            return 404, {}, {"error": "Not found"}
        return self.commit(name, repo, rest, [json.loads(line) for line in body.splitlines()])

    @staticmethod
    def entry(path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def mode(self, present: dict[str, bytes], path: str) -> dict[str, Any]:
        known = present.get(path)
        kind = "lfs" if path.endswith(LARGE) else "regular"
        git = None if known is None else hashlib.sha1(b"blob %d\0" % len(known) + known).hexdigest()
        oid = hashlib.sha256(known).hexdigest() if known is not None and kind == "lfs" else git
        return {"path": path, "uploadMode": kind, "shouldIgnore": False, "oid": oid}

    def context(self, wanted: dict[str, Any]) -> dict[str, Any]:
        known = {} if wanted["oid"] in self.blobs else {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}
        return {**wanted, **({"actions": known} if known else {})}

    def commit(self, name: str, repo: Repo, branch: str, lines: list[Any]) -> tuple[int, dict[str, str], Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo.commits.append(value["summary"])
            elif line["key"] == "file":
                repo.branches[branch][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del repo.branches[branch][value["path"]]
            else:
                assert line["key"] == "lfsFile"
                repo.branches[branch][value["path"]] = self.blobs[value["oid"]]
        commit = self.commit_id(repo)
        return 200, {}, {"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit}

    @staticmethod
    def commit_id(repo: Repo) -> str:
        return f"{len(repo.commits):040x}"


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = f"{self.command} {self.path.partition('?')[0]}"
            status, headers, answer = hub.answer(request, body, self.headers.get("Authorization"))
            content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = respond

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
