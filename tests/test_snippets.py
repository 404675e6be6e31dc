"""Every snippet of README and docs runs as printed, one after another, against small stand-ins on a local hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_repos import TOKEN
from hub_server import serving
from snippets import ROOT, RUN, commands_of, snippets_of
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TEXTS = ["A source is resized, then trained.", "Grow what is small, shrink what is large."] * 16


def tokenizer(folder, **special):
    """Of single bytes and the few pairs that the texts have."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    wanted = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=sorted(set(special.values()))
    )
    built.train_from_iterator(TEXTS, wanted)
    PreTrainedTokenizerFast(tokenizer_object=built, model_max_length=64, **special).save_pretrained(folder)


def stand_ins(folder: Path) -> dict[str, Path]:
    """Hub id -> a small model with random weights, in the shape of the real one's files."""
    torch.manual_seed(0)
    bert = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    gpt2 = GPT2LMHeadModel(
        GPT2Config(n_layer=12, n_embd=48, n_head=12, n_positions=64, vocab_size=300, bos_token_id=0, eos_token_id=0)
    )
    sizes = {"num_hidden_layers": 12, "hidden_size": 48, "num_attention_heads": 12, "intermediate_size": 192}
    made = {
        "gpt2": (gpt2, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
        "google-bert/bert-base-uncased": (BertForPreTraining(BertConfig(**sizes)), bert),
        "distilbert-base-uncased": (
            DistilBertForMaskedLM(DistilBertConfig(dim=48, n_layers=6, n_heads=12, hidden_dim=192, vocab_size=300)),
            bert,
        ),
    }
    for name, (model, special) in made.items():
        model.save_pretrained(folder / name)
        tokenizer(folder / name, **special)
    return {name: folder / name for name in made}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with serving() as found:
        for name, folder in stand_ins(tmp_path_factory.mktemp("stand-ins")).items():
            found.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
        found.repos["bert-base-uncased"] = found.repos["google-bert/bert-base-uncased"]
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_snippet_runs_in_order(document, hub, home, tmp_path):
    ours = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    ours |= {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
        "no_proxy": "*",
        "MPLBACKEND": "agg",
    }
    ours |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "COLUMNS": "80"}
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    command = [sys.executable, str(ROOT / "tests" / "snippets.py"), str(document)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **ours}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-12000:]
    assert done.stdout.splitlines()[-1] == f"{len(snippets_of(document))} snippets"


def test_no_block_is_passed_over(tmp_path):
    """A document's fences are read as they are; what cannot be run is an error, not left out."""
    text = "x\n<!-- file: a.py -->\n```python\n1 / 0\n```\n\n```python\nimport a\n```\n"
    document = tmp_path / "page.md"
    document.write_text(text)
    first, second = snippets_of(document)
    assert (first.mark, first.text, first.line, second.mark) == (("file", "a.py"), "1 / 0", 4, None)
    assert first.language in RUN
    command = [sys.executable, str(ROOT / "tests" / "snippets.py"), str(document)]
    failed = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert failed.returncode
    assert "ZeroDivisionError" in failed.stderr
    document.write_text("```cobol\nSTOP RUN.\n```\n")
    assert "cobol" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stderr


def test_commands_of_a_shell_block():
    text = 'pip install "a[b]" && run \\\n  --x 1  # why\n\n# only words\nA=1 go'
    assert commands_of(text) == [["pip", "install", "a[b]"], ["run", "--x", "1"], ["A=1", "go"]]
