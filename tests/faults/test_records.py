"""A result of which any fact was changed, lost or added is not what its record says, or its record is damaged."""

import json
import shutil
from pathlib import Path

import pytest
from families import build, save

from transformers_bot import BoTError, BoTModelForCausalLM, resize_checkpoint, verify

COMMIT = "f" * 40
# Another value of the same type for every fact; what is not listed gets one by its type.
OTHERS = {"versions": {"torch": "evil"}, "source": "elsewhere", "method": "tile", "nonfinite": "warn"}
OTHERS |= {"dtype": "float32", "revision": COMMIT, "detail": "zero", "basis": "plain", "gain": "raw"}
OTHERS |= {"claimed_source": {"source": "org/other", "revision": COMMIT}, "variant": "fp16", "subfolder": "inner"}
WRONG = [[1], {"a": {}}, 3.5, "\0", "\x1b[2J", None, True, "", 1 << 70]
# Facts that a model saved from memory shows by nothing else: they say how the source was to be read, not what came out.
UNSEEN = ("nonfinite", "strict", "allow_pickle", "ignore_mismatched_sizes", "source")
# Fields that transformers checks when it reads a config.
CONFIG = ("n_layer", "n_embd", "n_head", "vocab_size", "activation_function", "tie_word_embeddings", "architectures")
CONFIG += ("layer_norm_epsilon", "use_cache", "bos_token_id", "dtype", "model_type", "transformers_version", "n_inner")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """A source and both kinds of results of it."""
    folder = tmp_path_factory.mktemp("records")
    source = save(build("gpt2", "GPT2LMHeadModel").model, folder / "tiny")
    sizes = {"n_layer": 1, "n_embd": 6, "n_inner": 10, "n_head": 3}
    resize_checkpoint(source, folder / "written", **sizes)
    BoTModelForCausalLM.from_pretrained(source, **sizes).save_pretrained(folder / "memory")
    return {"source": Path(source), "written": folder / "written", "memory": folder / "memory"}


@pytest.fixture
def check(places, tmp_path):
    """Verify a copy of a result after a change of its config.json; the lines, or the error."""

    def verified(kind: str, change, file: str = "config.json") -> str:
        copied = tmp_path / "copy"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(places[kind], copied)
        fields = json.loads((copied / file).read_text())
        change(fields)
        (copied / file).write_text(json.dumps(fields))
        try:
            found = verify(copied, source=places["source"])
        except BoTError as error:
            text = f"error {error}"
        else:
            text = "\n".join(found.differing)
            assert found.equal == (not text)
        assert text.replace("\n", "").isprintable()
        return text

    return verified


def record_of(places: dict[str, Path], kind: str) -> dict:
    return json.loads((places[kind] / "config.json").read_text())["transformers_bot"]


def other(key: str, value):
    """A value of the same type."""
    if key in OTHERS and OTHERS[key] != value:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {**value, "further": 1}
    if isinstance(value, list):
        return [*value, "further"]
    return value + 1 if isinstance(value, (int, float)) else f"{value}x"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["written", "memory"])
def test_an_untouched_result_is_equal(check, kind):
    assert check(kind, lambda _: None) == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["written", "memory"])
def test_every_changed_lost_or_added_fact_is_a_difference(places, check, kind):
    record = record_of(places, kind)
    assert len(record) > 30
    for key, value in record.items():
        found = check(kind, lambda fields, key=key: fields["transformers_bot"].pop(key))
        assert key in found or "has no record" in found, f"{key} lost: {found}"
        if kind == "memory" and key in UNSEEN:
            continue
        changed = other(key, value)
        found = check(kind, lambda fields, key=key, new=changed: fields["transformers_bot"].update({key: new}))
        assert found, f"{key} changed"
    for key in ("further", "path", "modules", "fit", "layers", "e\x1b[2J"):
        for value in ({"a": 1}, [], None):
            found = check(kind, lambda fields, key=key, new=value: fields["transformers_bot"].update({key: new}))
            assert found, f"{key} added"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["written", "memory"])
@pytest.mark.parametrize("table", ["files", "versions", "options", "source_sizes", "config"])
def test_every_entry_of_a_table_is_compared(places, check, kind, table):
    for name in record_of(places, kind)[table]:
        found = check(kind, lambda fields, name=name: fields["transformers_bot"][table].pop(name))
        assert name in found, f"{table}.{name}"
        assert "missing" in found
    assert "further" in check(kind, lambda fields: fields["transformers_bot"][table].update(further="1"))


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_a_fact_of_a_wrong_type_is_named(places, check, turn):
    for number, (key, right) in enumerate(record_of(places, "written").items()):
        value = WRONG[(number + 3 * turn) % len(WRONG)]  # three of them for each fact
        if json.dumps(right) != json.dumps(value):
            assert check("written", lambda fields, key=key, new=value: fields["transformers_bot"].update({key: new})), (
                key
            )


@pytest.mark.slow
@pytest.mark.parametrize("key", CONFIG)
def test_every_field_of_the_config_is_compared(places, check, key):
    def fields_of(value):
        return lambda fields: fields.update({key: value})

    assert check("written", lambda fields: fields.pop(key)), "lost"
    value = json.loads((places["written"] / "config.json").read_text())[key]
    assert check("written", fields_of(other(key, value) if key != "dtype" else "float16")), "changed"
    if key != "transformers_version":
        assert check("written", fields_of(["\x1b[2J"])), "of another type"


@pytest.mark.parametrize("value", [1, None], ids=["one", "null"])
def test_a_name_that_no_config_has_is_a_difference(check, value):
    assert "further" in check("written", lambda fields: fields.update(further=value))


def test_a_fact_of_a_report_that_is_null_must_be_there(check):
    found = check("written", lambda report: report["method"]["options"].pop("detail_scale"), "transfer_report.json")
    assert "transfer_report.json method.options.detail_scale: missing, recomputed None" in found


@pytest.mark.slow
def test_versions_may_be_others_and_a_renamed_source_is_told(places, check, tmp_path):
    newer = {"torch": "99.1.0+cpu", "transformers": "99.0.0.dev0"}
    assert check("memory", lambda fields: fields["transformers_bot"]["versions"].update(newer)) == ""
    renamed = tmp_path / "renamed"
    shutil.copytree(places["source"], renamed)
    found = verify(places["written"], source=renamed)
    assert found.equal
    assert found.unchecked == ("record source: 'tiny', recomputed 'renamed'",)
    assert "'renamed'" in str(found)
    assert found.to_dict()["unchecked"] == list(found.unchecked)


@pytest.mark.parametrize("subfolder", ["../other", "/other", "a/../../b", "..", "C:\\other"])
def test_a_record_does_not_lead_out_of_the_source(check, subfolder):
    assert "is damaged: subfolder is" in check(
        "written", lambda fields: fields["transformers_bot"].update(subfolder=subfolder)
    )


@pytest.mark.slow
@pytest.mark.parametrize("key", ["classes", "parameters", "inherited", "tensors", "dropped", "energy_kept", "sizes"])
def test_what_a_report_says_is_compared(check, key):
    def change(report):
        if key == "tensors":
            report[key][3]["shape"] = [1, 2]
        elif isinstance(report[key], list):
            report[key] = report[key][::-1] if report[key][0] != report[key][1] else ["GPT2Model", "GPT2Model"]
        elif isinstance(report[key], dict):
            first = next(iter(report[key]), None)
            report[key] = (
                {"further": "x"} if first is None else {**report[key], first: "x" if key == "dropped" else [7, 7]}
            )
        else:
            report[key] = 0.25

    assert f"transfer_report.json {key}" in check("written", change, "transfer_report.json")
    assert "transfer_report.json" in check("written", lambda report: report.pop("tensors"), "transfer_report.json")


def test_a_claim_to_be_of_the_hub_needs_a_commit(check):
    found = check("memory", lambda fields: fields["transformers_bot"].update(local=False))
    assert "record revision: None, which is no commit" in found
