"""Pushing a resized model through the real huggingface_hub to a local server that speaks the Hub's protocol."""

import json
import shutil
from pathlib import Path

import hub_calls
import pytest
import yaml
from cards import metadata, recipe_in
from hub_repos import OTHER_TOKEN
from hub_server import serving

pytestmark = pytest.mark.slow

SOURCE_CARD = b"---\nlicense: cc-by-4.0\nlanguage: en\npipeline_tag: text-generation\n---\n\n# The source\n"


@pytest.fixture(scope="module")
def hub(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    with serving() as found:
        found.add("org/source", {**files, "README.md": SOURCE_CARD})
        yield found


@pytest.fixture(scope="module")
def call(hub, tmp_path_factory):
    with hub_calls.client(hub.url, tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_faults_left(hub):
    yield
    left = [fault for fault in hub.faults if fault.times]
    hub.faults.clear()
    assert not left, "a fault that was to happen did not"


def titles(hub, repo: str, branch: str = "main") -> list[str]:
    """Of all commits, newest first."""
    found, repo = [], hub.repos[repo]
    at = repo.branches[branch]
    while at:
        found.append(repo.commits[at].title)
        at = repo.commits[at].parent
    return found


def test_a_push_is_one_commit_with_weights_card_and_report(hub, call):
    pushed = call(hub_calls.push, "org/source", "small", tags="mine")
    head = hub.repos["me/small"].head()
    assert head.id == pushed["oid"]
    assert pushed["url"] == f"{hub.url}/me/small/commit/{head.id}"
    assert titles(hub, "me/small") == ["Upload model", "add"]
    made = {"README.md", "config.json", "generation_config.json", "model.safetensors", "transfer_report.json"}
    assert set(head.files) == {".gitattributes", *made}
    assert head.files["model.safetensors"].lfs
    assert call(hub_calls.load, "me/small")["digest"] == pushed["digest"]


def test_the_card_says_where_the_model_comes_from(hub, call):
    pushed = call(hub_calls.push, "org/source", "me/card", tags=["mine"])
    source = hub.repos["org/source"].head()
    assert metadata(hub.text("me/card", "README.md")) == {
        "base_model": "org/source",
        "library_name": "transformers",
        "license": "cc-by-4.0",
        "language": "en",
        "pipeline_tag": "text-generation",
        "tags": ["transformers_bot", "bot", "mine"],
    }
    card = hub.text("me/card", "README.md")
    assert f"commit of the source: `{source.id}`" in card
    assert f"{source.files['model.safetensors'].sha256}  model.safetensors" in card
    assert 'AutoModelForCausalLM.from_pretrained("me/card")' in card
    assert pushed["summary"] in card
    recipe = yaml.safe_load(recipe_in(card))
    assert recipe["source"] == "org/source"
    assert recipe["revision"] == source.id
    assert recipe["task"] == "causal-lm"
    assert recipe["config"] == {"n_layer": 3, "n_embd": 24, "n_head": 6}
    config = json.loads(hub.text("me/card", "config.json"))
    assert config["transformers_bot"]["revision"] == source.id


def test_the_recipe_makes_the_model_again_and_it_can_be_verified(hub, call, tmp_path):
    pushed = call(hub_calls.push, "org/source", "me/again")
    made = call(hub_calls.remake, recipe_in(hub.text("me/again", "README.md")), str(tmp_path))
    assert made["code"] == 0
    assert made["digest"] == pushed["digest"]
    assert metadata(made["card"]) == metadata(hub.text("me/again", "README.md"))
    assert call(hub_calls.verify, "me/again")


def test_a_second_push_keeps_what_a_person_wrote(hub, call):
    call(hub_calls.push, "org/source", "me/edited")
    head, body = hub.text("me/edited", "README.md").split("\n---\n")
    above, below = "\r\nWritten above, with a strange   \tspace.\r\n", "\n## Uses\n\nBelow: `x` <b>\n"
    edited = f"{head}\nmy_field: [1, 2]  # why\nlicense_name: own\n---\n{above}{body}{below}"
    hub.add("me/edited", {"README.md": edited.encode(), "notes.txt": b"mine"})
    call(hub_calls.push, "org/source", "me/edited", sizes={"n_embd": 36, "n_head": 9})
    card = hub.text("me/edited", "README.md")
    assert card.startswith(f"{head}\nmy_field: [1, 2]  # why\nlicense_name: own\n---\n{above}")
    assert card.endswith(below)
    assert card.count("## Resized with transformers-bot") == 1
    assert "| hidden | 12 | 36 |" in card
    assert "| hidden | 12 | 24 |" not in card
    assert hub.text("me/edited", "notes.txt") == "mine"


def test_pushing_the_same_again_commits_nothing(hub, call):
    first = call(hub_calls.push, "org/source", "me/same")
    again = call(hub_calls.push, "org/source", "me/same")
    assert again["oid"] == first["oid"]
    assert len(titles(hub, "me/same")) == 2


@pytest.mark.parametrize(
    ("method", "path", "status", "times"),
    [
        ("POST", "/repos/create", 503, 2),
        ("POST", "/validate-yaml", 502, 1),
        ("POST", "/preupload/", 500, 1),
        ("PUT", "/lfs/", 503, 1),
        ("PUT", "/lfs/", "drop", 1),
        ("POST", "/lfs/verify", 500, 1),
        ("POST", "/commit/", 503, 2),
        ("POST", "/commit/", 429, 1),
        ("POST", "/commit/", "drop", 1),
        ("POST", "/commit/", "lose", 1),
        ("GET", "/api/models/me/[^/]+$", 504, 1),
    ],
)
def test_a_failing_upload_is_tried_again_and_committed_once(hub, call, method, path, status, times):
    repo = f"me/fails-{path.strip('/').replace('/', '-')[:12].strip('[^$]-')}-{status}"
    hub.objects.clear()  # or nothing needs to be uploaded
    hub.fail(method, path, status, times)
    pushed = call(hub_calls.push, "org/source", repo)
    assert titles(hub, repo) == ["Upload model", "add"]
    assert hub.repos[repo].head().id == pushed["oid"]
    assert call(hub_calls.load, repo)["digest"] == pushed["digest"]


def test_an_upload_that_goes_on_failing_ends_with_the_hubs_own_error(hub, call):
    before = len(hub.requests)
    hub.fail("POST", "/commit/", 503, times=3)
    kinds, _, message = call(hub_calls.raised, hub_calls.push, "org/source", "me/down")
    assert kinds[0] == "HfHubHTTPError"
    assert "503" in message
    assert sum("/commit/" in path for _, path, _ in hub.requests[before:]) == 3
    assert titles(hub, "me/down") == ["add"]


def test_a_refusal_is_not_tried_again(hub, call):
    before = len(hub.requests)
    hub.fail("POST", "/commit/", 403)
    kinds, _, message = call(hub_calls.raised, hub_calls.push, "org/source", "me/refused")
    assert kinds[0] == "HfHubHTTPError"
    assert "403" in message
    assert sum("/commit/" in path for _, path, _ in hub.requests[before:]) == 1


def test_text_written_between_reading_and_committing_is_kept(hub, call):
    call(hub_calls.push, "org/source", "me/race")
    late = hub.text("me/race", "README.md") + "\nWritten at the last moment.\n"
    hub.fail("POST", "/commit/", lambda: hub.add("me/race", {"README.md": late.encode()}))
    call(hub_calls.push, "org/source", "me/race", sizes={"n_embd": 36, "n_head": 9})
    card = hub.text("me/race", "README.md")
    assert "Written at the last moment." in card
    assert "| hidden | 12 | 36 |" in card


def test_a_card_that_cannot_be_fetched_is_not_taken_for_a_missing_one(hub, call):
    call(hub_calls.push, "org/source", "me/hidden")
    mine = hub.text("me/hidden", "README.md") + "\nMine.\n"
    hub.add("me/hidden", {"README.md": mine.encode()})
    hub.fail("HEAD", "/me/hidden/resolve/.*README.md", 500, times=99)
    kinds, _, _ = call(hub_calls.raised, hub_calls.push, "org/source", "me/hidden", sizes={"n_layer": 4})
    assert "LocalEntryNotFoundError" in kinds
    assert hub.text("me/hidden", "README.md") == mine
    hub.faults.clear()


def test_weights_of_an_earlier_push_do_not_stay_beside_the_new_ones(hub, call):
    files = []
    for limit in ("2KB", "50GB", "2KB"):
        pushed = call(hub_calls.push, "org/source", "me/shards", max_shard_size=limit)
        files.append({name for name in hub.repos["me/shards"].head().files if name.startswith("model")})
        assert call(hub_calls.load, "me/shards")["digest"] == pushed["digest"]
    assert files[1] == {"model.safetensors"}
    assert files[0] == files[2]
    assert len(files[0]) > 3


def test_branch_private_and_pull_request(hub, call):
    call(hub_calls.push, "org/source", "me/closed", private=True, revision="v2", commit_message="Smaller")
    assert hub.repos["me/closed"].private
    assert titles(hub, "me/closed", "v2") == ["Smaller", "add"]
    assert titles(hub, "me/closed") == ["add"]
    pushed = call(hub_calls.push, "org/source", "me/closed", create_pr=True)
    assert pushed["pull"].endswith("/discussions/1")
    assert titles(hub, "me/closed") == ["add"]
    assert "README.md" in hub.repos["me/closed"].head("refs/pr/1").files


def test_a_lost_pull_request_is_not_opened_twice(hub, call):
    hub.fail("POST", "/commit/", "lose")
    call(hub_calls.raised, hub_calls.push, "org/source", "me/pulls", create_pr=True)
    assert hub.repos["me/pulls"].pulls == 1


@pytest.mark.parametrize(
    ("card", "word"), [(b"---\nlicense: [\n---\nText\n", "plain YAML"), (b"---\na: 1\n---\n\xff\xfe", "UTF-8")]
)
def test_a_card_that_cannot_be_updated_stops_the_push(hub, call, card, word):
    name = f"me/broken-{len(card)}"
    hub.add(name, {"README.md": card})
    kinds, _, message = call(hub_calls.raised, hub_calls.push, "org/source", name)
    assert "SaveError" in kinds
    assert word in message
    assert set(hub.repos[name].head().files) == {"README.md"}


def test_a_reloaded_and_trained_model_keeps_its_card(hub, call):
    call(hub_calls.push, "org/source", "me/first")
    call(hub_calls.push_again, "me/first", "me/second", changed=True)
    first, second = (hub.text(name, "README.md") for name in ("me/first", "me/second"))
    assert first.replace("first", "second").split("<!--")[1] == second.split("<!--")[1]
    assert hub.text("me/first", "transfer_report.json") == hub.text("me/second", "transfer_report.json")
    assert call(hub_calls.load, "me/second")["digest"] != call(hub_calls.load, "me/first")["digest"]


def test_a_model_that_was_not_resized_is_refused(call):
    kinds, _, message = call(hub_calls.raised, hub_calls.push_plain, "org/source", "me/plain")
    assert "BadOption" in kinds
    assert "no provenance" in message


def test_transformers_own_ways_to_push_still_work(hub, call):
    assert {"config.json", "model.safetensors", "README.md"} <= call(hub_calls.save_and_push, "org/source", "me/own")
    assert call(hub_calls.load, "me/own")["provenance"]["method"] == "bot"
    oid = call(hub_calls.train_and_push, "org/source", "me/trained")
    assert hub.repos["me/trained"].head().id == oid
    card = hub.text("me/trained", "README.md")
    assert "generated_from_trainer" in metadata(card)["tags"]
    assert "transformers_bot" in metadata(card)["tags"]
    assert "## Training procedure" in card
    assert "## Resized with transformers-bot" in card


def test_a_push_without_the_right_token_passes_the_hubs_answer_on(call):
    kinds, _, message = call(hub_calls.raised, hub_calls.push, "org/source", "me/else", token=OTHER_TOKEN)
    assert "HfHubHTTPError" in kinds
    assert "401" in message


@pytest.mark.parametrize("way", ["memory", "reloaded", "an earlier version's"])
def test_a_push_of_a_local_source_tells_no_path(hub, call, saved, tmp_path, way):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    source = tmp_path / "alice_realname/private_project/tiny-gpt2"
    shutil.copytree(folder, source)
    (source / "pytorch_model.bin").write_bytes(b"unread")  # named in a warning
    repo = f"me/from-{way[:2]}"
    call(hub_calls.push_local, str(source), repo, way)
    files = hub.repos[repo].head().files
    assert {"README.md", "config.json", "transfer_report.json"} <= set(files)
    for name, stored in files.items():
        assert not [
            word for word in (b"alice_realname", b"private_project", str(tmp_path).encode()) if word in stored.data
        ], name
    record = json.loads(hub.text(repo, "config.json"))["transformers_bot"]
    assert (record["source"], record["local"], "path" in record) == ("tiny-gpt2", True, False)
    assert list(record["files"]) == ["model.safetensors"]
    assert json.loads(hub.text(repo, "transfer_report.json"))["provenance"] == record
    assert yaml.safe_load(recipe_in(hub.text(repo, "README.md")))["local_source"] == "tiny-gpt2"
    assert call(hub_calls.verify, repo, source=str(source))
