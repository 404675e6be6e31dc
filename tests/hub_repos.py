"""What the local hub of the tests holds: repositories with commits and branches, LFS objects, faults to come."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

USER = "me"
TOKEN = "hf_me"
OTHER_TOKEN = "hf_other"


@dataclass
class Stored:
    """A file of a commit."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """The git id: of the content, or of the pointer that stands for it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        content = pointer.encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Commit:
    id: str
    parent: str | None
    title: str
    files: dict[str, Stored]


@dataclass
class Repo:
    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    pulls: int = 0

    def commit(self, branch: str, title: str, files: dict[str, Stored], parent: str | None = None) -> Commit:
        parent = parent or self.branches.get(branch)
        text = json.dumps([parent, title, len(self.commits), sorted((n, f.etag) for n, f in files.items())])
        made = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, files)
        self.commits[made.id] = made
        self.branches[branch] = made.id
        return made

    def head(self, branch: str = "main") -> Commit:
        return self.commits[self.branches[branch]]

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Fault:
    """`times` requests that match are answered by `status`.

    "drop" cuts the connection, "lose" does so after the work; a function is called before the work.
    """

    method: str
    path: re.Pattern[str]
    status: int | str | Callable[[], None]
    times: int


class Hub:
    """The server's state, and what tests say to it and ask of it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, token
        self.lock = threading.RLock()
        self.url = self.storage = ""

    def add(self, name: str, files: dict[str, bytes], branch: str = "main", **flags: bool) -> Commit:
        """Commit files to a repository, which is made if it does not exist."""
        repo = self.repos.setdefault(name, Repo(name, **flags))
        stored = {path: Stored(data, is_lfs(path, len(data))) for path, data in files.items()}
        old = repo.head(branch).files if branch in repo.branches else {}
        return repo.commit(branch, "add", {**old, **stored})

    def fail(self, method: str, path: str, status: int | str | Callable[[], None], times: int = 1) -> None:
        self.faults.append(Fault(method, re.compile(path), status, times))

    def text(self, name: str, path: str, branch: str = "main") -> str:
        return self.repos[name].head(branch).files[path].data.decode()

    def count(self, method: str, path: str) -> int:
        return sum(1 for how, where, _ in self.requests if how == method and re.search(path, where))


def is_lfs(path: str, size: int) -> bool:
    return path.endswith((".safetensors", ".bin")) or size > 1_000_000
