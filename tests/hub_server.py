"""A local server that speaks the Hub's protocol, as far as uploads and downloads of models use it.

It keeps repositories in memory, with commits, branches, LFS objects, gates and private repositories,
and it can be told to fail. What it answers follows the Hub's own API as huggingface_hub calls it;
Xet storage is not offered.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_repos import TOKEN, USER, Commit, Hub, Repo, Stored, is_lfs
from huggingface_hub.repocard import REGEX_YAML_BLOCK


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free local port, for as long as the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    port = server.server_address[1]
    # As on the Hub, large files come from another host, to which tokens must not go.
    hub.url, hub.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Answer(Exception):
    """Raised from any depth to end the handling of a request."""

    def __init__(self, status: int, body: object = b"", **headers: str) -> None:
        super().__init__(status)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def refuse(status: int, code: str, message: str, **headers: str) -> Answer:
    return Answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message, **headers)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<repo>.+?)/branch/(?P<rev>[^/]+)", "branch"),
        ("POST", r"/api/models/(?P<repo>.+?)/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>.+?)/commit/(?P<rev>[^/]+)", "commit"),
        ("GET", r"/api/models/(?P<repo>.+?)/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("GET", r"/api/models/(?P<repo>.+?)/revision/(?P<rev>[^/]+)", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)", "info"),
        ("POST", r"/(?P<repo>.+?)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store"),
        ("POST", r"/lfs/verify", "verify"),
        ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", "download"),
        ("GET", r"/(?P<repo>.+?)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - named by http.server

    def log_message(self, *_: object) -> None:
        """Tests ask `Hub.requests` instead."""

    def _handle(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        with self.hub.lock:
            self.hub.requests.append((self.command, url.path, self._token()))
            fault = self._fault(url.path)
            if fault == "drop":
                return self._cut()
            try:
                raise Answer(int(fault), {"error": "down"}) if isinstance(fault, int) else self._route(url, body)
            except Answer as answer:
                return self._cut() if fault == "lose" else self._send(answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _fault(self, path: str) -> int | str | None:
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and fault.path.search(path):
                fault.times -= 1
                return fault.status() if callable(fault.status) else fault.status
        return None

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _route(self, url, body: bytes) -> Answer:
        method = "GET" if self.command == "HEAD" else self.command
        for how, pattern, name in self.ROUTES:
            found = re.fullmatch(pattern, url.path)
            if how == method and found:
                parts = {key: unquote(value) if value else value for key, value in found.groupdict().items()}
                return getattr(self, f"on_{name}")(body, {k: v[0] for k, v in parse_qs(url.query).items()}, **parts)
        return Answer(404, {"error": f"no such endpoint: {self.command} {url.path}"})

    # -- who may do what --------------------------------------------------------------------------

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _repo(self, name: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._token() != TOKEN):
            raise refuse(404 if self._token() else 401, "RepoNotFound", "Repository not found")
        if write and self._token() != TOKEN:
            raise Answer(401 if not self._token() else 403, {"error": "no write access"})
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> Commit:
        found = repo.find(revision)
        if found is None:
            raise refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # -- the endpoints ----------------------------------------------------------------------------

    def on_create(self, body: bytes, _: dict) -> Answer:
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if self._token() != TOKEN:
            return Answer(401, {"error": "Invalid username or password."})
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            return Answer(409, {"error": "You already created this model repo", **answer})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return Answer(200, answer)

    def on_validate(self, body: bytes, _: dict) -> Answer:
        block = REGEX_YAML_BLOCK.match(json.loads(body)["content"])
        try:
            data = yaml.safe_load(block[2]) if block else {}
        except yaml.YAMLError as error:
            return Answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        if not isinstance(data, dict):
            return Answer(400, {"errors": [{"message": "metadata must be a table"}], "warnings": []})
        wrong = [key for key in ("license", "library_name") if not isinstance(data.get(key, ""), str)]
        errors = [{"message": f'"{key}" must be a string'} for key in wrong]
        return Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def on_branch(self, body: bytes, _: dict, repo: str, rev: str) -> Answer:
        found = self._repo(repo, write=True)
        if rev in found.branches:
            return Answer(409, {"error": "Reference already exists"})
        start = json.loads(body or b"{}").get("startingPoint", "main")
        found.branches[rev] = self._commit_of(found, start).id
        return Answer(200, {})

    def on_info(self, _: bytes, __: dict, repo: str, rev: str = "main") -> Answer:
        found = self._repo(repo)
        commit = self._commit_of(found, rev)
        siblings = [{"rfilename": path} for path in commit.files]
        flags = {"private": found.private, "gated": "manual" if found.gated else False, "tags": [], "downloads": 0}
        return Answer(200, {"_id": "1", "id": repo, "modelId": repo, "sha": commit.id, "siblings": siblings, **flags})

    def on_tree(self, _: bytes, __: dict, repo: str, rev: str, path: str | None) -> Answer:
        commit = self._commit_of(self._repo(repo), rev)
        inside = f"{path}/" if path else ""
        files = [(name, stored) for name, stored in commit.files.items() if name.startswith(inside)]
        if path and not files:
            return refuse(404, "EntryNotFound", f"{path} does not exist")
        return Answer(200, [_entry(name, stored) for name, stored in files])

    def on_preupload(self, body: bytes, query: dict, repo: str, rev: str) -> Answer:
        found = self._repo(repo, write=not query.get("create_pr"))
        old = self._commit_of(found, rev).files
        answers = []
        for asked in json.loads(body)["files"]:
            path, mode = asked["path"], "lfs" if is_lfs(asked["path"], asked["size"]) else "regular"
            known = {"oid": old[path].etag} if path in old else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return Answer(200, {"files": answers})

    def on_batch(self, body: bytes, _: dict, repo: str) -> Answer:
        self._repo(repo)
        answers = []
        for asked in json.loads(body)["objects"]:
            upload = {"href": f"{self.hub.url}/lfs/{asked['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify"}}
            answers.append({**asked, **({} if asked["oid"] in self.hub.objects else {"actions": actions})})
        return Answer(200, {"transfer": "basic", "objects": answers})

    def on_store(self, body: bytes, _: dict, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return Answer(400, {"error": "the content is not what its id says"})
        self.hub.objects[oid] = body
        return Answer(200)

    def on_verify(self, body: bytes, _: dict) -> Answer:
        asked = json.loads(body)
        whole = len(self.hub.objects.get(asked["oid"], b"")) == asked["size"]
        return Answer(200 if whole else 404, {"message": "verified" if whole else "missing"})

    def on_commit(self, body: bytes, query: dict, repo: str, rev: str) -> Answer:
        as_pull = query.get("create_pr") == "1"
        found = self._repo(repo, write=not as_pull)
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = self._commit_of(found, rev)
        if header.get("parentCommit") not in (None, parent.id) and not as_pull:
            return Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(parent.files)
        for line in lines:
            self._apply(files, line["key"], line["value"])
        branch = rev
        if as_pull:
            found.pulls += 1
            branch = f"refs/pr/{found.pulls}"
        made = found.commit(branch, header["summary"], files, parent.id)
        url = f"{self.hub.url}/{repo}"
        pull = {"pullRequestUrl": f"{url}/discussions/{found.pulls}"} if as_pull else {}
        return Answer(200, {"success": True, "commitOid": made.id, "commitUrl": f"{url}/commit/{made.id}", **pull})

    def _apply(self, files: dict[str, Stored], key: str, value: dict) -> None:
        if key == "file":
            files[value["path"]] = Stored(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self.hub.objects:
                raise Answer(400, {"error": f"LFS object {value['oid']} was not uploaded"})
            files[value["path"]] = Stored(self.hub.objects[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if value["path"] not in files:
                raise refuse(404, "EntryNotFound", "A file with this name doesn't exist")
            del files[value["path"]]

    def on_resolve(self, _: bytes, __: dict, repo: str, rev: str, path: str) -> Answer:
        found = self._repo(repo)
        if found.gated and self._token() != TOKEN:
            where = f"Access to model {repo} is restricted."
            raise refuse(403 if self._token() else 401, "GatedRepo", where)
        commit = self._commit_of(found, rev)
        stored = commit.files.get(path)
        if stored is None:
            return refuse(404, "EntryNotFound", f"{path} does not exist", X_Repo_Commit=commit.id)
        if not stored.lfs:
            return self._bytes(stored.data, X_Repo_Commit=commit.id, ETag=f'"{stored.oid}"')
        self.hub.objects[stored.sha256] = stored.data
        linked = {"X_Linked_Etag": f'"{stored.sha256}"', "X_Linked_Size": str(len(stored.data))}
        return Answer(302, X_Repo_Commit=commit.id, Location=f"{self.hub.storage}/cdn/{stored.sha256}", **linked)

    def on_download(self, _: bytes, __: dict, oid: str) -> Answer:
        return self._bytes(self.hub.objects[oid], ETag=f'"{oid}"')

    def _bytes(self, data: bytes, **headers: str) -> Answer:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        plain = {"Content_Type": "application/octet-stream", "Accept_Ranges": "bytes", **headers}
        if not asked:
            return Answer(200, data, **plain)
        first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        return Answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **plain)


def _entry(path: str, stored: Stored) -> dict:
    lfs = {"oid": stored.sha256, "size": len(stored.data), "pointerSize": 130}
    own = {"type": "file", "path": path, "oid": stored.oid, "size": len(stored.data)}
    return {**own, **({"lfs": lfs} if stored.lfs else {})}
