"""Data in the layouts of GLUE and SQuAD from Python's own help texts, and sources to fine-tune on them."""

import json
import lzma
import pydoc_data.topics
import re

import example_runs as runs
import torch
from tokenizers import processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}


def topics():
    return sorted(pydoc_data.topics.topics.items())


def write_glue(folder):
    """Lines of two help topics, in turn: sentences, pairs and scores that tell the topics apart."""
    texts = dict(topics())
    lines = [[" ".join(line.split()) for line in texts[name].splitlines()] for name in ("string-methods", "assignment")]
    lines = [[line for line in each if len(line) > 30] for each in lines]
    rows = [(label, lines[label][i % len(lines[label])]) for i in range(600) for label in (0, 1)]
    for name, part in (("in_domain_train", rows[:400]), ("in_domain_dev", rows[400:440])):
        _table(folder / "CoLA" / f"{name}.tsv", [["pydoc", label, "", line] for label, line in part])
    _table(folder / "CoLA" / "out_of_domain_dev.tsv", [["pydoc", label, "*", line] for label, line in rows[440:460]])
    pairs = [(label, first, second) for (label, first), (_, second) in zip(rows, rows[2:], strict=False)]
    marked = [[label, 1, 2, first, f'"{second}'] for label, first, second in pairs]
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    _table(folder / "MRPC" / "train.tsv", [header, *marked[:400]], encoding="utf-8-sig")
    _table(folder / "MRPC" / "dev.tsv", [header, *marked[400:460]], encoding="utf-8-sig")
    scored = [[1 + 3.5 * label, first, second] for label, first, second in pairs]
    header = ["score", "sentence1", "sentence2"]
    _table(folder / "STS-B" / "train.tsv.xz", [header, *scored[:400]])
    _table(folder / "STS-B" / "dev.tsv.xz", [header, *scored[400:460]])


def _table(path, rows, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "wt", encoding=encoding, newline="") as file:
        file.writelines("\t".join(map(str, row)) + "\n" for row in rows)


def write_squad(folder, impossible):
    """Questions for the first quoted piece of each help paragraph; v2.0 keeps paragraphs that quote nothing."""
    articles = []
    for title, text in topics():
        paragraphs = []
        for number, paragraph in enumerate(text.split("\n\n")):
            found = re.search(r'"([^"\n]+)"', paragraph)
            if found is None and not impossible:
                continue
            answers = [] if found is None else [{"text": found[1], "answer_start": found.start(1)}]
            entry = {"id": f"{title}-{number}", "question": "What is quoted first?", "answers": answers}
            paragraphs.append(
                {"context": paragraph, "qas": [entry | ({"is_impossible": not answers} if impossible else {})]}
            )
        articles.append({"title": title, "paragraphs": paragraphs[:10]})
    path = folder / ("v2.0.json.xz" if impossible else "v1.1.json")
    opened = lzma.open if impossible else open
    with opened(path, "wt", encoding="utf-8") as file:
        json.dump({"version": "v2.0" if impossible else "1.1", "data": articles}, file)
    return path


def bert_tokenizer(text):
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = runs.train_tokenizer(text, list(special.values()), size=1500)
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **special
    )


def write_sources(folder):
    """An untrained model and its tokenizer for every family, by its name."""
    text, _ = runs.write_texts(folder)
    torch.manual_seed(0)
    bert = bert_tokenizer(text)
    gpt2 = PreTrainedTokenizerFast(tokenizer_object=runs.train_tokenizer(text, ["<end>"]), eos_token="<end>")
    gpt2_sizes = {"vocab_size": len(gpt2), "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    made = {
        "bert": (BertModel(BertConfig(vocab_size=len(bert), max_position_embeddings=64, **SIZES)), bert),
        "roberta": (
            RobertaModel(
                RobertaConfig(
                    vocab_size=len(bert), max_position_embeddings=70, type_vocab_size=1, pad_token_id=0, **SIZES
                )
            ),
            bert,
        ),
        "gpt2": (GPT2Model(GPT2Config(**gpt2_sizes, bos_token_id=0, eos_token_id=0)), gpt2),
    }
    for name, (model, tokenizer) in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
