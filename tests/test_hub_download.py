"""Resizing a model of the Hub through the real huggingface_hub and a local server: revisions, gates, cache, offline."""

import urllib.request
from pathlib import Path

import hub_calls
import pytest
from families import build, save
from hub_repos import OTHER_TOKEN
from hub_server import serving

pytestmark = pytest.mark.slow

CARD = b"---\nlicense: apache-2.0\n---\n\n# The source\n"
WEIGHTS = r"/cdn/|safetensors"


def content(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def folders(saved, tmp_path_factory):
    """Sources with other weights each, as local folders."""
    made = {"main": saved("gpt2", "GPT2LMHeadModel")[0]}
    for seed, name in enumerate(("branch", "inner", "shards"), start=1):
        model = build("gpt2", "GPT2LMHeadModel", seed=seed).model
        limit = {"max_shard_size": "4KB"} if name == "shards" else {}
        made[name] = save(model, tmp_path_factory.mktemp(name), **limit)
    return made


@pytest.fixture(scope="module")
def hub(folders):
    with serving() as found:
        found.add("org/source", {**content(folders["main"]), "README.md": CARD})
        found.repos["org/source"].branches["other"] = found.repos["org/source"].branches["main"]
        found.add("org/source", content(folders["branch"]), branch="other")
        inner = {f"inner/{name}": data for name, data in content(folders["inner"]).items()}
        found.add("org/nested", {**content(folders["main"]), **inner})
        found.add("org/shards", content(folders["shards"]))
        found.add("org/gated", {**content(folders["main"]), "README.md": CARD}, gated=True)
        found.add("me/private", content(folders["main"]), private=True)
        found.add("org/cached", {**content(folders["main"]), "README.md": CARD})
        found.add("org/planned", content(folders["main"]))
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def call(hub, home):
    with hub_calls.client(hub.url, home) as found:
        yield found


@pytest.mark.parametrize(
    ("name", "keywords", "folder"),
    [
        ("org/source", {}, "main"),
        ("org/source", {"revision": "other"}, "branch"),
        ("org/nested", {"subfolder": "inner"}, "inner"),
        ("org/shards", {}, "shards"),
        ("me/private", {}, "main"),
        ("org/gated", {}, "main"),
    ],
)
def test_a_hub_id_gives_what_the_folder_gives(hub, call, folders, name, keywords, folder):
    found = call(hub_calls.resize, name, **keywords)
    assert found["digest"] == call(hub_calls.resize, folders[folder])["digest"]
    assert found["provenance"]["source"] == name
    assert found["provenance"]["revision"] == hub.repos[name].head(keywords.get("revision", "main")).id


def test_a_commit_is_a_revision(hub, call):
    old, new = (hub.repos["org/source"].head(branch).id for branch in ("main", "other"))
    digests = [call(hub_calls.resize, "org/source", revision=commit)["digest"] for commit in (old, new)]
    assert digests == [call(hub_calls.resize, "org/source", revision=name)["digest"] for name in ("main", "other")]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("name", "keywords", "words"),
    [
        ("org/gated", {"token": False}, "'org/gated' is a gated model of the Hub: ask for access at "),
        ("org/gated", {"token": OTHER_TOKEN}, "is a gated model of the Hub"),
        ("org/missing", {}, "'org/missing' is no folder here, and no model of the Hub that you can see. If it is priv"),
        ("me/private", {"token": OTHER_TOKEN}, "If it is private, log in with `hf auth login`, or pass token=."),
        ("org/source", {"revision": "never"}, "'org/source' has no revision 'never' on the Hub"),
        ("not/an/id", {}, "no folder or file 'not/an/id'"),
        ("an id?", {}, "'an id?' is no folder here, and no name that a model on the Hub can have"),
    ],
)
def test_the_hubs_refusal_is_one_sentence(hub, call, tmp_path, name, keywords, words):
    before = hub.count("GET", WEIGHTS)
    kinds, causes, message = call(hub_calls.raised, hub_calls.resize, name, cache_dir=str(tmp_path), **keywords)
    assert "OSError" in kinds
    assert ("BoTError" in kinds) == (name != "not/an/id")
    assert causes[0] == "NoneType"  # no page of traceback
    assert words in message
    assert hub.count("GET", WEIGHTS) == before


def test_what_is_cached_is_not_fetched_again(hub, call):
    first = call(hub_calls.resize, "org/cached")
    before = hub.count("GET", "/org/cached/resolve/|/cdn/")
    assert call(hub_calls.resize, "org/cached") == first
    assert hub.count("GET", "/org/cached/resolve/|/cdn/") == before
    total = len(hub.requests)
    assert call(hub_calls.resize, "org/cached", local_files_only=True) == first
    assert len(hub.requests) == total


def test_offline_the_cache_is_enough(hub, call, home):
    online = [call(hub_calls.resize, "org/cached"), call(hub_calls.licence, "org/cached", {})]
    total = len(hub.requests)
    with hub_calls.client(hub.url, home, HF_HUB_OFFLINE="1") as offline:
        assert [offline(hub_calls.resize, "org/cached"), offline(hub_calls.licence, "org/cached", {})] == online
        assert offline(hub_calls.licence, "org/never", {}) is None
        kinds, causes, message = offline(hub_calls.raised, hub_calls.resize, "org/never")
    assert {"OSError", "HubError"} <= set(kinds)
    assert causes[0] == "NoneType"
    assert "not whole in the Hub's cache, and offline mode is on. Connect, or name a folder." in message
    assert len(hub.requests) == total


def test_tokens_stay_at_the_hub(hub, call, tmp_path):
    before = len(hub.requests)
    call(hub_calls.resize, "org/gated", cache_dir=str(tmp_path))
    told = [(path.startswith("/cdn/"), token) for _, path, token in hub.requests[before:]]
    assert {token for from_storage, token in told if from_storage} == {None}
    assert {token for from_storage, token in told if not from_storage} == {hub_calls.TOKEN}


def test_a_plan_fetches_no_weights(hub, call):
    assert call(hub_calls.plan, "org/planned") > 10
    assert hub.count("GET", "/org/planned/resolve/.*config.json") == 1
    assert hub.count("GET|HEAD", "/org/planned/.*safetensors") == 0
    assert call(hub_calls.plan, "org/planned", revision="main") > 10


def test_a_lost_connection_passes_unwrapped_and_the_next_try_succeeds(hub, call, tmp_path):
    hub.fail("GET", "/cdn/", "drop", times=99)
    kinds, _, _ = call(hub_calls.raised, hub_calls.resize, "org/source", cache_dir=str(tmp_path))
    assert "BoTError" not in kinds
    hub.faults.clear()
    assert call(hub_calls.resize, "org/source", cache_dir=str(tmp_path)) == call(hub_calls.resize, "org/source")


def test_a_part_of_a_file_can_be_asked_for(hub):
    card = f"{hub.url}/org/source/resolve/main/README.md"
    asked = urllib.request.Request(card, headers={"Range": "bytes=4-10"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked) as answer:
        assert (answer.status, answer.read()) == (206, CARD[4:11])
        assert answer.headers["Content-Range"] == f"bytes 4-10/{len(CARD)}"


@pytest.mark.parametrize(
    ("name", "keywords", "licence"),
    [
        ("org/source", {"revision": "other"}, "apache-2.0"),
        ("org/gated", {}, "apache-2.0"),
        ("org/gated", {"token": False, "cache_dir": "fresh"}, None),
        ("org/shards", {}, None),
        ("org/missing", {}, None),
        ("org/source", {"revision": "never"}, None),
    ],
)
def test_the_licence_is_the_sources(call, tmp_path, name, keywords, licence):
    if "cache_dir" in keywords:
        keywords = {**keywords, "cache_dir": str(tmp_path)}
    assert call(hub_calls.licence, name, keywords) == licence


def test_a_server_that_fails_leaves_the_licence_open(hub, call):
    for status in (500, "drop"):
        hub.fail("HEAD", "/org/nested/resolve/.*README", status, times=99)
        assert call(hub_calls.licence, "org/nested", {}) is None
        hub.faults.clear()
