"""Encoders of text: growing keeps the function and shrinking undoes it; what all layers read has one order, and what
some layers lack is taken from their neighbours.
"""

import json

import pytest
import torch
from decoders import change
from encoders import FULL, IDS, ROWS, SLIDING, TASKS, build, is_pre_norm, logits, named, resized
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

import transformers_bot
from transformers_bot import adapters
from transformers_bot.architectures.sizes import kind_of
from transformers_bot.errors import BoTError, IncompatibleModels, UnsupportedArchitecture

EXACT = 1e-12
FLOAT32_INSIDE = 3e-6  # DeBERTa takes the root that scores are divided by in float32
CLOSE = 0.4  # identity blocks of a post-norm model of 24 units, see test_postnorm_depth
GROWN = {
    "width": {"hidden_size": 48},
    "width and heads": {"hidden_size": 48, "num_attention_heads": 6},
    "length of heads": {"hidden_size": 48, "num_attention_heads": 3},
    "MLP": {"intermediate_size": 40},
    "depth": {"num_hidden_layers": 5},
    "embedding": {"embedding_size": 20},
    "all": {"hidden_size": 72, "num_attention_heads": 9, "intermediate_size": 40},
}


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("what", GROWN)
@pytest.mark.parametrize("row", ROWS)
def test_growing_keeps_the_outputs_and_shrinking_gives_them_back(tmp_path, row, what):
    if what == "embedding" and row != "electra":
        pytest.skip("embeddings are as wide as the stream")
    model, sizes = build(row), named(row, GROWN[what])
    before = {name: getattr(model.config, name) for name in sizes}
    target = resized(model, tmp_path / "source", **sizes)
    turns = row.startswith("modernbert") and what == "length of heads"  # by a table of angles in float32
    bound = FLOAT32_INSIDE if row.startswith("deberta") or turns else EXACT
    kept = CLOSE if what == "depth" and not is_pre_norm(row) else bound
    assert change(logits(target), logits(model)) < kept
    assert change(logits(resized(target, tmp_path / "grown", **before)), logits(model)) < bound


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("tied", [True, False])
def test_all_heads_grow_exactly(tmp_path, row, task, tied):
    labels = {"num_labels": 3} if task in ("SequenceClassification", "TokenClassification") else {}
    try:
        model = build(row, task, tie_word_embeddings=tied, **labels)
    except ValueError as error:
        pytest.skip(str(error)[:80])  # transformers has no such head
    target = resized(model, tmp_path, task, hidden_size=48, num_attention_heads=6)
    assert change(logits(target), logits(model)) < FLOAT32_INSIDE


def test_a_head_that_reads_the_input_embedding_without_a_tie_grows_exactly(tmp_path):
    model = build("deberta-v2", legacy=False)
    target = resized(model, tmp_path, hidden_size=48, num_attention_heads=6)
    assert change(logits(target), logits(model)) < EXACT


def batches() -> list[dict[str, torch.Tensor]]:
    """Texts of which some are padded."""
    drawn = [torch.randint(3, 37, (4, 16), generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    masks = [torch.ones_like(ids) for ids in drawn]
    masks[0][:, 12:] = 0
    return [{"input_ids": ids, "attention_mask": mask} for ids, mask in zip(drawn, masks, strict=True)]


HALVED = {"hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2}
OPTIONS = {
    "default": {},
    "wavelet over layers": {"bot_config": {"depth": "wavelet"}},
    "first layers": {"bot_config": {"depth": "first"}},
    "calibrated": {"calibration": batches},
    "strongest": {"calibration": batches, "bot_config": {"depth": "strongest", "order": "strongest"}},
    "importance": {"method": "importance"},
}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("row", ROWS)
def test_a_halved_model_runs(tmp_path, row, options):
    model = build(row, num_hidden_layers=4)
    keywords = {name: value() if callable(value) else value for name, value in OPTIONS[options].items()}
    target = resized(model, tmp_path, **named(row, HALVED), **keywords)
    assert torch.isfinite(logits(target)).all()
    assert change(logits(target), logits(model)) < 3


@pytest.mark.parametrize("row", ["mpnet", pytest.param("electra", marks=pytest.mark.slow)])
def test_readers_that_are_fitted_keep_more(tmp_path, row):
    model = build(row)
    ids = [torch.randint(3, 37, (16, 16), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    plain = resized(model, tmp_path, hidden_size=18)
    fitted = resized(model, tmp_path, hidden_size=18, calibration=[{"input_ids": each} for each in ids])
    alike = [
        float(torch.corrcoef(torch.stack([logits(other).flatten(), logits(model).flatten()]))[0, 1])
        for other in (plain, fitted)
    ]
    assert alike[1] > max(0.8, alike[0])


# -- what some layers lack, and what all of them read -------------------------------------------------


def test_lists_travel_and_the_first_layer_needs_no_norm(tmp_path):
    model = build("modernbert")
    target = resized(model, tmp_path, num_hidden_layers=5)
    assert model.config.layer_types == [FULL, SLIDING, FULL]
    assert target.config.layer_types == [FULL, FULL, SLIDING, SLIDING, FULL]
    assert isinstance(target.model.layers[0].attn_norm, torch.nn.Identity)
    # The block above the first layer copies it, and has the norm of the next one.
    assert torch.equal(target.model.layers[1].attn_norm.weight, model.model.layers[1].attn_norm.weight)
    assert change(logits(target), logits(model)) < EXACT


@pytest.mark.parametrize("method", ["bot", "importance"])
def test_no_layer_stands_for_one_that_has_no_norm(tmp_path, method):
    model = build("modernbert", num_hidden_layers=4, layer_types=[SLIDING, FULL, FULL, SLIDING])
    with torch.no_grad():
        for matrix in (model.model.layers[0].attn.Wo, model.model.layers[0].mlp.Wo):
            matrix.weight *= 1e-3  # the first layer changes the stream least
    options = {"bot_config": {"depth": "strongest"}} if method == "bot" else {"method": method}
    target = resized(model, tmp_path, num_hidden_layers=2, calibration=batches(), **options)
    assert torch.equal(target.model.layers[0].attn.Wqkv.weight, model.model.layers[0].attn.Wqkv.weight)
    assert target.config.layer_types[0] == SLIDING


def shuffled_heads(model: PreTrainedModel, order: list[int]) -> None:
    """The same MPNet with its heads, and their columns in the table of relative positions, in another order."""
    with torch.no_grad():
        for layer in model.mpnet.encoder.layer:
            attention = layer.attention.attn
            for matrix in (attention.q, attention.k, attention.v):
                matrix.weight.copy_(matrix.weight.view(len(order), -1, matrix.weight.shape[1])[order].flatten(0, 1))
                matrix.bias.copy_(matrix.bias.view(len(order), -1)[order].flatten())
            out = attention.o.weight
            out.copy_(out.view(len(out), len(order), -1)[:, order].flatten(1))
        table = model.mpnet.encoder.relative_attention_bias.weight
        table.copy_(table[:, order])


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("options", [{}, {"method": "importance"}], ids=["bot", "importance"])
def test_heads_that_share_a_table_have_one_order_in_all_layers(tmp_path, options):
    small = build("mpnet", hidden_size=12, num_attention_heads=2, num_hidden_layers=2)
    grown = resized(small, tmp_path / "small", hidden_size=24, num_attention_heads=4)
    before = logits(grown)
    shuffled_heads(grown, [2, 0, 3, 1])
    assert change(logits(grown), before) < EXACT
    back = resized(grown, tmp_path / "grown", hidden_size=12, num_attention_heads=2, **options)
    if not options:
        assert change(logits(back), logits(small)) < EXACT
    tables = [model.mpnet.encoder.relative_attention_bias.weight for model in (grown, back)]
    chosen = [next(i for i in range(4) if torch.allclose(tables[0][:, i], column)) for column in tables[1].T]
    for before, after in zip(grown.mpnet.encoder.layer, back.mpnet.encoder.layer, strict=True):
        biases = [layer.attention.attn.k.bias.view(-1, 6) for layer in (before, after)]
        assert torch.allclose(biases[0][chosen].norm(dim=1), biases[1].norm(dim=1))


def test_blocks_behind_a_convolution_undo_its_norm(tmp_path):
    model = build("deberta-v2 convolution", hidden_size=96, num_attention_heads=4)
    target = resized(model, tmp_path, num_hidden_layers=5)
    assert change(logits(target), logits(model)) < 0.25  # 0.45 if it undoes that of the layer, which stands before it


def test_modules_of_sentences_are_behind_the_stream_not_behind_the_embeddings(tmp_path):
    folder, weight = tmp_path / "source", torch.randn(5, 24, dtype=torch.float64)
    model = build("electra", "MaskedLM").electra
    model.save_pretrained(folder)
    modules = {"0": ("", "Transformer", {}), "1": ("1_Pooling", "Pooling", {"word_embedding_dimension": 24})}
    modules["2"] = ("2_Dense", "Dense", {"in_features": 24, "out_features": 5, "bias": False})
    for place, kind, fields in modules.values():
        (folder / place).mkdir(exist_ok=True)
        name = "sentence_bert_config.json" if kind == "Transformer" else "config.json"
        (folder / place / name).write_text(json.dumps(fields))
    save_file({"linear.weight": weight}, folder / "2_Dense/model.safetensors")
    listed = [
        {"idx": int(n), "name": n, "path": place, "type": f"sentence_transformers.models.{kind}"}
        for n, (place, kind, _) in modules.items()
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    transformers_bot.resize_checkpoint(folder, tmp_path / "out", hidden_size=48, num_attention_heads=6)
    read = load_file(tmp_path / "out/2_Dense/model.safetensors")["linear.weight"]
    wider = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        before, after = (reader @ each(input_ids=IDS)[0].mean(1).T for reader, each in ((weight, model), (read, wider)))
    assert change(after, before) < EXACT


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "width"), [("electra", 24), ("electra of one width", 10)])
def test_embeddings_of_the_streams_width_are_another_kind(tmp_path, row, width):
    with pytest.raises(IncompatibleModels, match=r"embedding_size equals hidden_size, in the .* config not"):
        resized(build(row), tmp_path, embedding_size=width)


def test_embeddings_follow_the_stream_where_they_are_it(tmp_path):
    assert resized(build("electra of one width"), tmp_path, hidden_size=48).config.embedding_size == 48


def test_suggestions_know_embeddings_that_are_the_stream():
    best = transformers_bot.suggest(CONFIG_MAPPING["electra"](embedding_size=256), ratio=0.5)[0]
    plan = transformers_bot.plan(CONFIG_MAPPING["electra"](embedding_size=256), **best.fields)
    assert "embedding" not in best.sizes
    assert plan.parameters == best.parameters


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted({model_type for model_type, _ in ROWS.values()}))
def test_suggestions_are_there_for_every_type(model_type):
    best = transformers_bot.suggest(CONFIG_MAPPING[model_type](), ratio=0.5)[0]
    assert transformers_bot.plan(CONFIG_MAPPING[model_type](), **best.fields).parameters == best.parameters


def test_positions_that_buckets_are_counted_to_stay(tmp_path):
    model = build("deberta-v2", max_relative_positions=-1)
    with pytest.raises(UnsupportedArchitecture, match=r"sorted into buckets by max_position_embeddings: keep 40"):
        resized(model, tmp_path, max_position_embeddings=64)


def test_buckets_below_those_that_are_computed_are_refused():
    with pytest.raises(BoTError, match="transformers reads 32 buckets"):
        transformers_bot.plan(CONFIG_MAPPING["mpnet"](relative_attention_num_buckets=16), hidden_size=384)


def test_layers_that_go_by_their_number_are_refused(monkeypatch):
    """The configs of transformers 5.0 have the distance of global layers, and its models go by it alone."""
    config_class = CONFIG_MAPPING["modernbert"]
    made = config_class.__post_init__

    def with_distance(self, **fields):
        made(self, **fields)
        self.global_attn_every_n_layers = fields.get("global_attn_every_n_layers", 3)

    monkeypatch.setattr(config_class, "__post_init__", with_distance)
    with pytest.raises(UnsupportedArchitecture, match="layer_types"):
        transformers_bot.plan(config_class(num_hidden_layers=6), num_hidden_layers=8)
    transformers_bot.plan(config_class(num_hidden_layers=6), hidden_size=1536)


# Fields of published configs beside those of the classes.
PUBLISHED = {
    "distilbert": {"tie_weights_": True, "sinusoidal_pos_embds": False, "output_past": True},
    "electra": {"position_embedding_type": "absolute", "summary_activation": "gelu", "summary_last_dropout": 0.1},
    "mpnet": {"relative_attention_num_buckets": 32},
    "xlm-roberta": {"output_past": True, "position_embedding_type": "absolute"},
    "camembert": {"output_past": True},
    "deberta-v2": {
        **{"relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True},
        **{"pos_att_type": "p2c|c2p", "conv_kernel_size": 3, "conv_act": "gelu", "max_relative_positions": -1},
        **{"position_biased_input": False, "attention_head_size": 64, "pooler_hidden_size": 1536, "pooler_dropout": 0},
    },
    "modernbert": {
        **{"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
        **{"position_embedding_type": "absolute", "layer_norm_eps": 1e-5, "reference_compile": False},
    },
}


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("model_type", PUBLISHED)
def test_every_field_of_published_configs_is_known(model_type):
    config = CONFIG_MAPPING[model_type](**PUBLISHED[model_type])
    double = {name: 2 * getattr(config, name) for name in ("hidden_size", "num_attention_heads")}
    plan = transformers_bot.plan(config, **double)
    told = "; ".join(plan.warnings)
    assert "does not know" not in told
    assert "the weights fit the former" not in told
    adapter = adapters.get(model_type).of(config)
    assert [name for name in config.to_dict() if kind_of(adapter, name) is None] == []


# -- training and any sizes ---------------------------------------------------------------------------

FIRST = {"distilbert": "ffn.lin1", "modernbert": "mlp.Wi", "modernbert biases": "mlp.Wi"}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("row", ROWS)
def test_training_parts_copies(tmp_path, row):
    sizes = named(row, {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 40})
    target = resized(build(row), tmp_path, **sizes).float().train()
    optimiser = torch.optim.AdamW(target.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ids = torch.randint(3, 37, (4, 12), generator=generator)
        target(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    name = f".0.{FIRST.get(row, 'intermediate.dense')}.weight"
    units = next(x for key, x in target.state_dict().items() if key.endswith(name))[:40].view(20, 2, -1)
    assert ((units[:, 0] - units[:, 1]).norm(dim=-1) > 1e-3 * units[:, 0].norm(dim=-1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_sizes_give_a_sound_model_or_an_error_that_names_them(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    choices = {
        "hidden_size": (12, 16, 24, 36, 48, 7),
        "num_attention_heads": (1, 2, 3, 4, 6),
        "intermediate_size": (5, 10, 20, 33),
        "num_hidden_layers": (1, 2, 3, 4, 7),
        "embedding_size": (5, 10, 24),
        "max_position_embeddings": (20, 40, 64),
    }
    sound = 0
    for number in range(15):
        row = draw(tuple(ROWS))
        model, method = build(row), draw(("bot", "bot", "bot", "importance", "lemon", "tile+stack", "front"))
        fields = {name: draw(values) for name, values in choices.items() if draw((True, False, False))}
        if "electra" not in row:
            fields.pop("embedding_size", None)
        try:
            target = resized(model, tmp_path / str(number), method=method, **named(row, fields))
        except BoTError:
            continue
        sound += 1
        assert torch.isfinite(logits(target, IDS)).all()
    assert sound > 2
