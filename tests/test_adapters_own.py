"""Adapters of one's own: the example of docs/adapters.md works, and the check finds what is wrong with one."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import transformers
from families import CONFIGS, FAMILIES
from own_families import ELECTRA, GPT_NEO, LLAMA, OPT, OPT_PROJECTED, OWN
from transformers import BertConfig, DistilBertConfig, DistilBertForMaskedLM, ElectraConfig, GPT2Config, GPT2LMHeadModel

from transformers_bot import (
    BadOption,
    BoTConfig,
    BoTModelForCausalLM,
    BoTModelForMaskedLM,
    IncompatibleModels,
    UnsupportedArchitecture,
    adapters,
    cli,
    methods,
    plan,
)
from transformers_bot.adapters import Adapter, Norm, Role, Roles
from transformers_bot.architectures import valid
from transformers_bot.architectures.families import BUILT_IN
from transformers_bot.architectures.inventory import predict
from transformers_bot.architectures.language import parse_rules
from transformers_bot.architectures.sizes import rebuild, role_sizes
from transformers_bot.architectures.tiny import change, inputs, outputs, random_model
from transformers_bot.errors import PlanError
from transformers_bot.methods import Task
from transformers_bot.methods.prepare import basis_of
from transformers_bot.ops.recipe import run
from transformers_bot.planning.planner import Side, make_plan
from transformers_bot.tools.conformance import check as checking
from transformers_bot.tools.conformance.check import check

DOCS = Path(__file__).parent.parent / "docs" / "adapters.md"
TINY = {"vocab_size": 50, "dim": 24, "n_heads": 4, "hidden_dim": 96, "n_layers": 3, "max_position_embeddings": 16}


@pytest.fixture(autouse=True)
def without_the_built_in_one():
    """DistilBERT as an architecture that nobody has described yet."""
    built_in = adapters.ADAPTERS.pop("distilbert")
    yield
    adapters.ADAPTERS["distilbert"] = built_in


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """The file that the documentation shows."""
    path = tmp_path_factory.mktemp("adapter") / "distilbert.py"
    path.write_text(re.search(r"<!-- test: distilbert.py -->\n```python\n(.*?)```", DOCS.read_text(), re.S)[1])
    return path


@pytest.fixture
def registered(example):
    (adapter,) = adapters.load(example)
    yield adapters.register(adapter)
    del adapters.ADAPTERS["distilbert"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    model = DistilBertForMaskedLM(DistilBertConfig(**TINY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("distilbert")
    model.save_pretrained(folder)
    return str(folder), model


@pytest.mark.slow
def test_the_example_fits_and_resizes_as_a_built_in_one_does(registered, source, tmp_path):
    assert check(registered, DistilBertConfig()).problems == []
    folder, model = source
    tokens = torch.arange(3, 13)[None]
    wider = BoTModelForMaskedLM.from_pretrained(folder, dim=48, n_heads=8)
    assert wider.config.hidden_dim == 192  # follows dim
    torch.testing.assert_close(wider(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
    wider.save_pretrained(tmp_path)
    back = BoTModelForMaskedLM.from_pretrained(tmp_path, dim=24, n_heads=4)
    torch.testing.assert_close(back(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
    smaller = BoTModelForMaskedLM.from_pretrained(folder, dim=12, n_heads=2, n_layers=2)
    assert smaller(tokens).logits.isfinite().all()


@pytest.mark.slow
def test_the_example_on_the_command_line(example, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder, _ = source
    try:
        assert cli.main(["adapters", "check", str(example), "--model", folder]) == 0
        out = capsys.readouterr().out
        assert "The adapter fits." in out
        assert all(len(line) <= 80 for line in out.splitlines())
        sizes = ["--set", "dim=12", "--set", "n_heads=2", "--adapter", str(example)]
        assert cli.main(["plan", folder, *sizes]) == 0
        assert cli.main(["resize", folder, str(tmp_path / "small"), *sizes]) == 0
        assert cli.main(["inspect", folder, "--adapter", str(example)]) == 0
        assert cli.main(["suggest", folder, "--ratio", "0.5", "--adapter", str(example)]) == 0
        verifying = ["verify", str(tmp_path / "small"), "--source", folder, "--adapter", str(example)]
        assert cli.main(verifying) == 0
    finally:
        adapters.ADAPTERS.pop("distilbert", None)
    capsys.readouterr()
    assert cli.main(["plan", folder, "--set", "dim=12"]) == 4
    assert "'distilbert' has no adapter" in capsys.readouterr().err


def only(monkeypatch, *names):
    """Check these classes and no others: others have other heads, and nothing else."""
    monkeypatch.setattr(checking, "classes_of", lambda _: [getattr(transformers, name) for name in names])


# what is changed in the rules -> what the check says
WRONG = {
    "not named": (r"qa_outputs", "qa_output", "tensor 'qa_outputs.weight' of shape 2x96 is named by no rule"),
    "named twice": (r"pre_classifier\.bias +: hidden", "pre_classifier.bias : hidden\n{pre_classifier,x}.bias : hidden",
                    "tensor 'pre_classifier.bias' of shape 96 is named by 2 rules"),
    "shape": (r"lin1\.bias +: ffn", "lin1.bias : hidden", r"lin1.bias' of shape 384, but its rule .* predicts 96"),
    "order of a square matrix": (r"out_lin\.weight +: \+hidden <- \(heads head_dim\)",
                                 "out_lin.weight : (heads head_dim) -> +hidden", "permuting hidden .* changes"),
    "a role for another": (r"v_lin\.weight +: \(heads head_dim\)", "v_lin.weight : (heads score)",
                           "permuting (head_dim and )?score .* changes the outputs"),
    "arrow": (r"lin1\.weight +: ffn <- hidden", "lin1.weight : ffn -> hidden",
              "doubling .*ffn.* changes .*; it does not with .*ffn <- hidden"),
    "no arrow": (r"vocab_transform\.weight +: hidden <- hidden", "vocab_transform.weight : hidden hidden",
                 "doubling hidden and heads.* changes the outputs"),
    "no readout": (r"vocab_layer_norm\.\{weight,bias\} +: readout", "vocab_layer_norm.{weight,bias} : hidden",
                   "doubling hidden and heads.* changes the outputs"),
    "keys that write": (r"k_lin\.weight +: \(heads ~score\)", "k_lin.weight : (heads score)",
                        "doubling hidden and head_dim changes .*; it does not with .*~score"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "replacement", "message"), WRONG.values(), ids=WRONG)
def test_the_check_finds_what_is_wrong(example, pattern, replacement, message, monkeypatch):
    (adapter,) = adapters.load(example)
    heads = ("MaskedLM", "QuestionAnswering", "SequenceClassification")
    only(monkeypatch, *(f"DistilBertFor{head}" for head in heads))
    text = "\n".join(rule.text for rule in adapter.rules)
    changed, count = re.subn(pattern, replacement.replace("\\", "\\\\"), text)
    assert count >= 1
    config = DistilBertConfig(**{**TINY, "dim": 96, "hidden_dim": 384})
    problems = check(dataclasses.replace(adapter, rules=parse_rules(changed)), config).problems
    assert any(re.search(message, problem) for problem in problems), problems


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", OWN)
def test_an_adapter_of_a_family_that_nobody_has_seen_fits_and_resizes(family, monkeypatch, tmp_path):
    adapter, config, name, larger = OWN[family]
    only(monkeypatch, name)
    config.architectures = [name]
    done = check(adapter, config)
    assert (done.problems, done.run) == ([], [name])
    model = random_model(getattr(transformers, name), config)
    model.save_pretrained(tmp_path / "source")
    monkeypatch.setitem(adapters.ADAPTERS, adapter.model_type, adapter)
    factory = BoTModelForMaskedLM if "MaskedLM" in name else BoTModelForCausalLM
    grown = factory.from_pretrained(tmp_path / "source", **larger)
    assert change(outputs(grown, inputs(model)), outputs(model, inputs(model))) < 1e-5
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    sizes |= {"embedding_size": 4} if family == "electra" else {}  # never as wide as the stream
    smaller = factory.from_pretrained(tmp_path / "source", **sizes)
    assert smaller(**inputs(model)).logits.isfinite().all()


def without(adapter: Adapter, *names: str) -> tuple[Norm, ...]:
    return tuple(norm for norm in adapter.norms if norm.name not in names)


def with_norm(adapter: Adapter, name: str, **changes) -> dict[str, object]:
    """The norms with one of them changed."""
    return {"norms": tuple(dataclasses.replace(n, **changes) if n.name == name else n for n in adapter.norms)}


def with_rules(adapter: Adapter, before: str, after: str) -> dict[str, object]:
    """The rules with a text in place of another one."""
    text = "\n".join(rule.text for rule in adapter.rules)
    assert before in text
    return {"rules": parse_rules(text.replace(before, after))}


INSIDE = "encoder.layer.{layer}.intermediate.dense"
LAST, FIRST = "encoder.layer.{layer}.output.LayerNorm", "encoder.layer.{layer}.attention.output.LayerNorm"
# what a user leaves out or gets wrong -> what the check says of it
MISTAKES = {
    "no norm": ("electra", {"norms": without(ELECTRA, "embeddings.LayerNorm")},
                r"norms does not name it: add Norm\('embeddings.LayerNorm', readers=\('embeddings_project',\)\)"),
    "no readers": ("opt", with_norm(OPT, "decoder.layers.{layer}.final_layer_norm", readers=()),
                   "is read by decoder.layers.{layer}.fc1 and nothing else, but it names none of them"),
    "too few readers": ("opt", with_norm(OPT, OPT.norms[0].name, readers=OPT.norms[0].readers[:2]),
                        "attn.v_proj and .*nothing else, but its readers are"),
    "readers of the stream": ("electra", with_norm(ELECTRA, LAST, readers=(INSIDE,)),
                              "or none if the residual stream itself goes on"),
    "a mean": ("llama", with_norm(LLAMA, "norm", kind="layer"), "does not subtract the mean: its kind is 'rms'"),
    "no mean": ("opt", with_norm(OPT, "decoder.final_layer_norm", kind="rms"),
                "subtracts the mean: its kind is 'layer'"),
    "gain": ("llama", with_norm(LLAMA, "norm", gain="1+w"), "multiplies by its weight: its gain is 'w'"),
    "pre": ("electra", {"norm": "pre"}, "norm is 'post', not 'pre'"),
    "post": ("opt", {"norm": "post"}, "norm is 'pre', not 'post'"),
    "no +": ("llama", with_rules(LLAMA, "+hidden <- ffn", "hidden <- ffn"),
             r"have no \+ .*: layers.{layer}.mlp.down_proj.weight : hidden <- ffn$"),
    "no undoes": ("electra", with_norm(ELECTRA, FIRST, undoes=""), f"is the first of its block: undoes={LAST!r}"),
    "undoes of the last": ("electra", with_norm(ELECTRA, LAST, undoes=FIRST), "only the first one has it"),
    "no readout": ("llama", {**with_rules(LLAMA, "readout", "hidden"), "readout": False,
                             "roles": Roles(*(role for role in LLAMA.roles.values() if role.name != "readout"))},
                   "doubling .* with tie_word_embeddings=True changes"),
    "readout of the head": ("opt", {"readout": False}, "the base model has the role readout: set readout=True"),
    "no gains": ("gpt_neo", {"gains": {}}, r"it does not with gains=\{'score': lambda"),
    "gains": ("opt", {"gains": {"score": lambda _: 1.0}}, "it does not with no 'score' in gains"),
    "order of factors": ("opt", with_rules(OPT, "(heads head_dim)", "(head_dim heads)"),
                         r"it does not with \(heads head_dim\) in place of \(head_dim heads\)"),
    "a config of another kind": ("opt", {"only": {"do_layer_norm_before": False}}, "refuses this config: do_layer"),
    "prefix": ("llama", with_rules(LLAMA, "embed_tokens.", "model.embed_tokens."), "leave out the prefix 'model.'"),
    "misspelt": ("opt", with_rules(OPT, "q_proj.bias", "q_prj.bias"), "by no rule; is it meant by 'decoder.layers"),
}  # fmt: skip


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_the_check_says_what_to_change(family, changes, message, monkeypatch):
    adapter, config, name, _ = OWN[family]
    config.architectures = [name]
    only(monkeypatch, *(("OPTModel", name) if "readout" in changes else (name,)))
    problems = check(dataclasses.replace(adapter, **changes), config).problems
    assert any(re.search(message, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("before", "after", "told"), [(8, 16, "no embeddings_project.bias and no"), (16, 8, "a embed")]
)
def test_a_size_that_takes_a_matrix_away_is_refused(monkeypatch, before, after, told):
    """Embeddings as wide as the stream need no matrix between them; an adapter may forget to say so."""
    monkeypatch.setitem(adapters.ADAPTERS, "electra", ELECTRA)
    config = ElectraConfig(**{**OWN["electra"][1].to_dict(), "embedding_size": before})
    with pytest.raises(IncompatibleModels, match=f"embedding_size={after} the target has {told}"):
        plan(config, embedding_size=after)
    plan(config, hidden_size=32, num_attention_heads=4, embedding_size=2 * before)


@pytest.mark.slow
def test_the_check_asks_for_a_config_in_which_two_streams_differ(monkeypatch):
    config = OWN["opt"][1]
    only(monkeypatch, "OPTForCausalLM")
    (problem,) = check(OPT_PROJECTED, config).problems
    assert "hidden and embed have one length: check with --model" in problem


@pytest.mark.slow
def test_the_check_tells_of_rules_and_fields_that_are_not_there(monkeypatch):
    only(monkeypatch, "GPTNeoForCausalLM")
    idle = parse_rules("score.weight : label <- readout")
    changed = dataclasses.replace(GPT_NEO, rules=GPT_NEO.rules + idle, meaning=("window", "rotary"))
    notes = check(changed, OWN["gpt_neo"][1]).notes
    assert "rules without a tensor in these classes: 'score.weight : label <- readout'" in notes
    assert "fields that GPTNeoConfig does not have in this version: 'window' (meaning), 'rotary' (meaning)" in notes


def test_a_check_that_runs_nothing_does_not_pass(example, monkeypatch, capsys):
    (adapter,) = adapters.load(example)
    name = "DistilBertForMaskedLM"
    only(monkeypatch, name)
    monkeypatch.setattr(checking, "_own", lambda _: [])
    monkeypatch.setattr(DistilBertForMaskedLM, "main_input_name", "sounds")
    done = check(adapter, DistilBertConfig(**TINY, architectures=[name]))
    assert (done.run, done.not_run) == ([], {name: "its inputs are sounds"})
    assert any("no model could be run" in problem for problem in done.problems)
    assert cli.main(["adapters", "check", str(example)]) == 4
    assert "The adapter does not fit" in capsys.readouterr().out


@pytest.mark.slow
def test_the_check_names_what_reads_a_norm():
    """A norm's weight that is folded into queries and keys is missing in the values, where they are not named."""
    adapter = adapters.get("vit")
    wrong = [
        dataclasses.replace(norm, readers=norm.readers[:2]) if norm.name == "layers.{layer}.layernorm_before" else norm
        for norm in adapter.norms
    ]
    problems = check(dataclasses.replace(adapter, norms=tuple(wrong)), CONFIGS["vit"]()).problems
    assert any("v_proj and nothing else, but its readers are" in problem for problem in problems), problems


@pytest.mark.slow
def test_sizes_that_are_right_by_accident_do_not_scale(example):
    (adapter,) = adapters.load(example)
    fixed = dataclasses.replace(adapter, roles=adapter.roles.with_(Role("position", "place", 16)))
    problems = check(fixed, DistilBertConfig(**TINY)).problems
    assert problems == []  # 16 is this model's; only its own field would tell
    wrong = dataclasses.replace(adapter, roles=adapter.roles.with_(Role("ffn", "unit", lambda config: 4 * config.dim)))
    config = DistilBertConfig(**{**TINY, "hidden_dim": 100})
    assert any("predicts 96" in problem for problem in check(wrong, config).problems)


@pytest.mark.slow
def test_a_misfit_is_exit_code_4(example, tmp_path, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text(example.read_text().replace("{classifier,qa_outputs}", "{classifier}"))
    assert cli.main(["adapters", "check", str(broken)]) == 4
    out = capsys.readouterr().out
    assert "is named by no rule" in out
    assert "The adapter does not fit: 2 problems." in out


INVALID = {
    "norm": ({"norm": "both"}, "norm must be 'pre' or 'post'"),
    "rules": ({"rules": ()}, "rules must be what parse_rules"),
    "needed kinds": ({"roles": Roles(Role("layer", "depth", "n_layers"))}, "roles has none of kind 'stream'"),
    "no roles": ({"roles": {"layer": "n_layers"}}, "roles must be Roles(Role(...), ...), got dict"),
    "twice": ({"roles": Roles(*[Role("layer", "depth", "n_layers")] * 2)}, "roles has 'layer' twice"),
    "kind": ({"roles": Roles(Role("layer", "dept", "n_layers"))}, "has the kind 'dept'. Did you mean 'depth'"),
    "entries of nothing": ({"roles": Roles(Role("head_dim", "entry", 4))}, "'head_dim' has no within="),
    "follows nothing": ({"roles": Roles(Role("readout", "stream", 4, follows="hiden"))}, "names 'hiden', which roles"),
    "model type": ({"model_type": "distilbart"}, "transformers has no such model type. Did you mean 'distilbert'"),
    "norms": ({"norms": (Norm("embeddings.layernorm"),)}, "'embeddings.layernorm', but no rule names"),
    "kind of norm": ({"norms": (Norm("embeddings.LayerNorm", kind="batch"),)}, "must be of kind 'layer' or 'rms'"),
    "readers": ({"norms": (Norm("vocab_layer_norm", ("vocab_out",)),)}, "'vocab_out', but no rule names"),
    "undoes": ({"norms": (Norm("vocab_layer_norm", undoes="vocab_layernorm"),)}, "Did you mean 'vocab_layer_norm"),
    "a reader of something else": ({"norms": (Norm("embeddings.LayerNorm", ("transformer.layer.{layer}.ffn.lin2",)),)},
                                   "does not read hidden"),
    "one text for names": ({"meaning": "activation"}, "meaning must be a tuple, got str"),
    "one text for readers": ({"norms": (Norm("vocab_layer_norm", "vocab_projector"),)}, "must be a tuple of names"),
    "derived": ({"derived": {"hiden_dim": lambda c: 4 * c.dim}}, "derived has 'hiden_dim', ... mean 'hidden_dim'"),
    "only": ({"only": {"sinusoidal_pos_embd": False}}, "only has 'sinusoidal_pos_embd', which"),
    "meaning": ({"meaning": ("activatoin",)}, "meaning has 'activatoin', which ... mean 'activation'"),
    "activation": ({"activation": "hidden_act"}, "activation is 'hidden_act', which ... Did you mean 'activation'?"),
    "epsilon": ({"epsilon": "eps"}, "epsilon is 'eps', which DistilBertConfig does not have"),
    "gains": ({"gains": {"scores": float}}, "gains name 'scores', which is neither a role ... mean 'score'"),
    "gain of no score": ({"gains": {"hidden": float}}, "gains name 'hidden', which is neither a role"),
    "gain that is a number": ({"gains": {"score": 1.0}}, "'score' must have a function of the config"),
    "a + on what is no stream": (
        {"rules": parse_rules("a.{layer}.weight : +ffn <- hidden")}, "has a +, but nothing that it writes is of kind"),
    "one wavelet": ({"wavelets": "haar"}, "wavelets must be two names, to shrink and to grow"),
    "no wavelet": ({"wavelets": ("haar", "harr")}, "wavelets has 'harr', which is none of ... mean 'haar'"),
    "rate": ({"learning_rate": 0.0}, "learning_rate must be None or a number above 0, got 0.0"),
    "tensors": ({"tensors": "activation"}, "tensors must be a tuple, got str"),
    "a text for rules": ({"rules": "text"}, "rules must be what parse_rules() returns"),
    "one text for fields": ({"with_width": "n_heads"}, "with_width must be a tuple, got str"),
    "field beside the width": ({"with_width": ("n_head",)}, "with_width is 'n_head', which ... mean 'n_heads'"),
    "readers of nothing": ({"norms": (Norm("vocab_layer_norm", None),)}, "must be a tuple of names: (...,), got None"),
    "activated": ({"activated": ("vocab_transfrm",)}, "activated names 'vocab_transfrm', ... mean 'vocab_transform'"),
    "weight norm": ({"weight_norms": {"g": "v"}}, "weight_norms names 'g', a tensor that no rule names"),
    "gain of 0": ({"gains": {"score": lambda _: 0.0}}, "gains of 'score' returns 0.0 for DistilBertConfig"),
    "a field that fails": ({"only": {"dim": lambda c: c.width}}, "only of 'dim' fails for DistilBertConfig"),
    "a check of one text": ({"checks": (lambda _: "odd",)}, "checks returns 'odd' for"),
    "a clash with fewer arguments": ({"clash": lambda _: None}, "clash fails for DistilBertConfig(): TypeError"),
    "no layer": ({"rules": parse_rules("a.weight : hidden"), "norms": ()}, "no rule has {layer}"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), INVALID.values(), ids=INVALID)
def test_registering_refuses_what_contradicts_itself(example, changes, message):
    (adapter,) = adapters.load(example)
    with pytest.raises(BadOption, match=re.escape(message).replace(re.escape("..."), ".*")):
        adapters.register(dataclasses.replace(adapter, **changes))
    assert "distilbert" not in adapters.ADAPTERS


def test_registering_refuses_fields_and_roles_that_do_not_exist(example):
    (adapter,) = adapters.load(example)
    with pytest.raises(BadOption, match="got 'layer' among them, which is no Role"):
        Roles("layer")
    for role, message in [
        (Role("hidden", "stream", "dim", grouped="nope"), "names 'nope', which roles does not have"),
        (Role("hidden", "stream", "dim", stays=lambda _: 1), "stays of role 'hidden' returns 1"),
    ]:
        with pytest.raises(BadOption, match=message):
            adapters.register(dataclasses.replace(adapter, roles=adapter.roles.with_(role)))
    holds = adapters.Variant("it is odd", lambda c: c.oddness, adapter)
    with pytest.raises(BadOption, match="holds of a variant fails for DistilBertConfig"):
        adapters.register(dataclasses.replace(adapter, variants=(holds,)))
    for role, message in (
        (Role("vocab", "identity", "vocabsize"), r"'vocabsize', which DistilBertConfig does not have. .* 'vocab_size'"),
        (Role("hidden", "stream", 768), r"the size of role 'hidden' must be the name of a config field"),
        (Role("layer", "depth", "n_layers", lists=("kinds",)), r"'kinds', which DistilBertConfig does not have"),
    ):
        with pytest.raises(BadOption, match=message):
            adapters.register(dataclasses.replace(adapter, roles=adapter.roles.with_(role)))
    with pytest.raises(BadOption, match=r"in divides is 'n_head', which .* Did you mean 'n_heads'"):
        adapters.register(dataclasses.replace(adapter, divides=(("n_head", "dim"),)))
    for role, message in (
        (Role("ffn", "stream", "hidden_dim"), "'ffn' is of kind 'stream', but only tensors inside of layers have it"),
        (Role("groups", "unit", "n_heads"), "role 'groups' stands for nothing, because no rule has it"),
        (Role("other_layer", "depth", "n_layers"), r"because no name has \{other_layer\}"),
        (Role("head_dim", "entry", 4, within="hidden"), "is within 'hidden', whose kind is not 'unit'"),
        (Role("layer", "depth", "n_layers", lists="kinds"), r"must be a tuple of names: \('kinds',\)"),
    ):
        with pytest.raises(BadOption, match=message):
            adapters.register(dataclasses.replace(adapter, roles=adapter.roles.with_(role)))
    unknown = parse_rules("a.{layer}.weight : hiden")
    with pytest.raises(BadOption, match=r"role 'hiden', which roles does not have. Did you mean 'hidden'"):
        adapters.register(dataclasses.replace(adapter, rules=adapter.rules + unknown))


def test_built_in_model_types_stay(example):
    (adapter,) = adapters.load(example)
    with pytest.raises(BadOption, match="'bert' is built in"):
        adapters.register(dataclasses.replace(adapters.get("bert"), meaning=()))
    with pytest.raises(BadOption, match=r"must be a transformers_bot\.adapters\.Adapter, got dict"):
        adapters.register({"model_type": "distilbert"})
    assert adapters.register(adapters.get("bert")) is adapters.get("bert")
    assert adapter.model_type not in adapters.ADAPTERS


def test_only_adapters_of_published_results_are_locked(monkeypatch):
    monkeypatch.setattr(valid, "ADAPTERS", dict(adapters.ADAPTERS))
    assert {adapter.model_type for adapter in BUILT_IN if adapter.locked} == set(FAMILIES)
    own = {adapter.model_type for adapter in BUILT_IN if adapter.wavelets != ("haar", "haar")}
    assert own == {"bert", "roberta", "gpt2"}
    for family in ("gpt2", "camembert"):
        other = dataclasses.replace(adapters.get(family), inert=("use_cache",))
        if other.locked:
            with pytest.raises(BadOption, match="is built in and cannot be replaced"):
                adapters.register(other)
        else:
            assert adapters.register(other) is other


def test_wavelets_and_locks_are_an_adapters_own(registered):
    """An adapter that was made from a locked one is not locked, and its wavelets are those of the raw transform."""
    other = dataclasses.replace(registered, wavelets=("db2", "sym4"), locked=True)
    adapters.register(other)
    assert adapters.register(dataclasses.replace(other, meaning=())).meaning == ()
    small, large = (DistilBertConfig(dim=dim, n_heads=4, hidden_dim=4 * dim, n_layers=2) for dim in (16, 32))
    for source, target, wavelet in ((large, small, "db2"), (small, large, "sym4")):
        made = plan(source, target, bot_config={"gain": "raw"})
        assert set(made.method["wavelet"].values()) == {wavelet}


def test_registering_again_replaces_ones_own(registered):
    other = dataclasses.replace(registered, meaning=())
    adapters.register(other)
    assert adapters.get("distilbert") is other


def test_an_adapter_is_for_its_own_model_type(example):
    (adapter,) = adapters.load(example)
    with pytest.raises(BadOption, match="the adapter is for 'distilbert' and the model is a 'bert' model"):
        check(adapter, BertConfig())
    with pytest.raises(UnsupportedArchitecture, match=r"see docs/adapters.md"):
        plan(DistilBertConfig(), dim=12)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x = 1", BadOption, "own.py defines no adapter"),
        ("from transformers_bot.architectures.families.bert import BERT", BadOption, "own.py defines no adapter"),
        ("x = (", BadOption, "own.py cannot be run: SyntaxError"),
        ("import no_such_module", BadOption, "own.py cannot be run: ModuleNotFoundError"),
        (
            "from transformers_bot.adapters import parse_rules\nparse_rules('a')",
            PlanError,
            "own.py: rule 'a' has no colon",
        ),
    ],
)
def test_a_file_that_is_no_adapter(tmp_path, text, error, message):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(error, match=message):
        adapters.load(path)
    with pytest.raises(BadOption, match=r"there is no adapter file '.*none\.py'"):
        adapters.load(tmp_path / "none.py")


@pytest.mark.slow
def test_lists_with_an_entry_per_layer_follow_the_layers(registered, source, tmp_path, monkeypatch):
    """A layer keeps its kind wherever it goes; what a user gives stays."""
    layer = dataclasses.replace(registered.roles["layer"], lists=("kinds",))
    monkeypatch.setattr(DistilBertConfig, "kinds", None, raising=False)
    adapters.register(dataclasses.replace(registered, roles=registered.roles.with_(layer)))
    _, model = source
    model.config.kinds = ["a", "b", "c"]
    model.save_pretrained(tmp_path)
    model.config.kinds = None

    def kinds(layers: int, **keywords):
        return BoTModelForMaskedLM.from_pretrained(tmp_path, n_layers=layers, **keywords).config.kinds

    assert kinds(6, method="stack") == ["a", "b", "c", "a", "b", "c"]
    assert kinds(6, method="interpolate") == ["a", "a", "b", "b", "c", "c"]
    assert kinds(2) == ["a", "c"]
    assert kinds(2, kinds=["x", "y"]) == ["x", "y"]


def wider(adapter, tied: bool = True):
    """The steps of GPT-2's adapter with these facts, at twice the width."""
    before = GPT2Config(n_embd=12, n_head=3, n_layer=2, vocab_size=60, tie_word_embeddings=tied)
    after = rebuild(adapter, before, {"n_embd": 2 * before.n_embd, "n_head": 2 * before.n_head})
    one, other = (
        Side(config, role_sizes(adapter, config, "source"), predict(GPT2LMHeadModel, config), torch.float32)
        for config in (before, after)
    )
    made = make_plan(adapter, one, other, methods.get("bot", BoTConfig(detail="zero")))
    return {step.target.removeprefix("transformer."): step for step in made.steps}


def run_on(step, *tensors) -> torch.Tensor:
    found = iter(tensors)
    return run(step.recipe, lambda _: next(found), torch.float64, torch.device("cpu"))


def test_factors_of_the_forward_pass_are_made_up_for():
    adapter = dataclasses.replace(adapters.get("gpt2"), gains={"wte": lambda config: config.n_embd**0.5})
    steps, plain = wider(adapter), wider(adapters.get("gpt2"))
    table, norm = torch.randn(60, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    torch.testing.assert_close(run_on(steps["wte.weight"], table), run_on(plain["wte.weight"], table) / 2**0.5)
    torch.testing.assert_close(run_on(steps["ln_f.weight"], norm), run_on(plain["ln_f.weight"], norm) * 2**0.5)
    untied = wider(adapter, tied=False)
    torch.testing.assert_close(run_on(untied["ln_f.weight"], norm), norm.repeat_interleave(2))


def test_a_norm_of_one_more_than_its_weight_is_mapped_as_such():
    adapter = adapters.get("gpt2")
    norms = tuple(dataclasses.replace(norm, gain="1+w") for norm in adapter.norms)
    steps = wider(dataclasses.replace(adapter, norms=norms))
    weight = torch.randn(12, dtype=torch.float64)
    torch.testing.assert_close(run_on(steps["h.0.ln_1.weight"], weight), weight.repeat_interleave(2))
    # Half of the gain, which is 1 + w, in front of a tied output embedding that reads two copies.
    torch.testing.assert_close(run_on(steps["ln_f.weight"], weight), (weight.repeat_interleave(2) + 1) / 2 - 1)


def test_a_norm_behind_a_block_keeps_the_basis_of_its_stream():
    adapter = adapters.get("gemma2")
    assert not adapter.turns
    task = Task(adapter, {"hidden": 12}, {"hidden": 6}, True)
    with pytest.raises(BadOption, match="norms of gemma2 stand behind its blocks"):
        basis_of(BoTConfig(basis="principal"), task, ["haar"])
    assert basis_of(BoTConfig(), task, ["haar"]) == "plain"
