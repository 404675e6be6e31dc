"""The fine-tuning scripts on small real data in the layouts of GLUE and SQuAD, and their metrics by hand."""

import argparse
import json
import lzma
import math
import pydoc_data.topics
import re
import sys

import example_runs as runs
import numpy
import pytest
import scipy.stats
import torch
from tokenizers import processors
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

sys.path.append(str(runs.EXAMPLES))  # as python does for a script in that folder

import data_glue
import data_rows
import data_squad
import metrics_glue
import metrics_squad
import span_answers

STEPS = 20
COMMON = ["--batch-size", 16, "--logging-steps", 5, "--eval-steps", 10, "--save-steps", 10, "--learning-rate", "5e-3"]
GROW = ["--set", "hidden_size=64", "--set", "num_attention_heads=4"]
# The trainer's loss of two processes is the mean over examples only where the batches come out even.
GLUE = ["finetune_glue.py", *COMMON, "--max-eval-examples", 56, "--per_device_eval_batch_size", 4, "--seq-length", 40]
SQUAD = ["finetune_squad.py", *COMMON, "--max-eval-examples", 24, "--per_device_eval_batch_size", 1]
SQUAD += ["--seq-length", 64, "--stride", 16, "--max-question-length", 12]
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


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with data and an untrained source of every family."""
    folder = tmp_path_factory.mktemp("finetune")
    write_glue(folder / "glue")
    for impossible in (False, True):
        write_squad(folder, impossible)
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
    return folder


def glue(work, task, output, *more, source="bert"):
    data = ["--task", task, "--data-dir", work / "glue", "--source", work / source]
    return [*GLUE, *data, *([] if "--max-steps" in more else ["--max-steps", STEPS]), "--output-dir", output, *more]


def squad(work, output, *more, file="v2.0.json.xz", source="bert"):
    data = ["--train-file", work / file, "--split-by-title", "50/10", "--source", work / source]
    return [*SQUAD, *data, *([] if "--max-steps" in more else ["--max-steps", STEPS]), "--output-dir", output, *more]


PLANNED = {"mrpc": lambda *given: glue(given[0], "mrpc", *given[1:], *GROW), "squad": lambda *g: squad(*g, *GROW)}


@pytest.fixture(scope="module")
def alone(work):
    """Name -> summary and log of an uninterrupted run in one process."""
    made = {}
    for name, plan in PLANNED.items():
        made[name] = runs.run_here(*plan(work, work / f"alone-{name}")), runs.log_of(work / f"alone-{name}")
    return made


@pytest.mark.parametrize("name", PLANNED)
def test_one_process(name, work, alone):
    summary, log = alone[name]
    runs.check_budget(log, STEPS)
    assert log[-1]["eval_loss"] < log[0]["eval_loss"] - 0.05
    assert summary["source"]["method"] == "bot"
    loader = AutoModelForSequenceClassification if name == "mrpc" else AutoModelForQuestionAnswering
    model = loader.from_pretrained(work / f"alone-{name}")
    assert model.num_parameters() == summary["parameters"]
    assert model.config.hidden_size == 64
    assert AutoTokenizer.from_pretrained(work / f"alone-{name}")("a", "b").input_ids[0] == 2  # [CLS]


def test_saved_classifier_gives_the_logged_metrics(work, alone):
    """Plain transformers, one example at a time, without padding."""
    folder = work / "alone-mrpc"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    lines = (work / "glue/MRPC/dev.tsv").read_text(encoding="utf-8-sig").splitlines()[1:57]
    hits = 0
    for line in lines:
        label, _, _, *texts = line.split("\t")
        with torch.no_grad():
            logits = model(**tokenizer(*texts, truncation="longest_first", max_length=40, return_tensors="pt")).logits
        hits += int(logits.argmax()) == int(label)
    assert alone["mrpc"][0]["metrics"]["eval_accuracy"] == pytest.approx(hits / len(lines))
    assert hits / len(lines) > 0.6
    assert model.config.id2label == {0: "not_equivalent", 1: "equivalent"}


def test_predictions_are_those_of_the_logged_metrics(work, alone):
    """Predictions and odds as SQuAD's own evaluation script reads them."""
    metrics = alone["squad"][0]["metrics"]
    texts, odds = (
        json.loads((work / "alone-squad" / name).read_text()) for name in ("predictions.json", "null_odds.json")
    )
    assert texts.keys() == odds.keys()
    assert all((texts[key] == "") == (odds[key] > 0) for key in texts)
    with lzma.open(work / "v2.0.json.xz", "rt") as file:
        entries = [e for a in json.load(file)["data"] for p in a["paragraphs"] for e in p["qas"]]
    wanted = {e["id"]: [a["text"] for a in e["answers"]] for e in entries if e["id"] in texts}
    for name, value in metrics_squad.scores(texts, wanted).items():
        assert metrics[f"eval_{name}"] == pytest.approx(value)
    assert {"eval_has_answer_f1", "eval_no_answer_f1"} <= metrics.keys()


def test_two_processes(work, alone):
    """The same global batch gives the same training, however it is split."""
    planned = [plan(work, work / f"two-{name}") for name, plan in PLANNED.items()]
    for name, summary in zip(PLANNED, runs.run_launched(*planned), strict=True):
        assert summary["processes"] == 2
        runs.check_same_run(alone[name][1], runs.log_of(work / f"two-{name}"), tolerance=2e-3)
    predictions = [(work / f"{run}-squad" / "predictions.json").read_text() for run in ("alone", "two")]
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize("name", PLANNED)
def test_killed_and_resumed(name, work, alone):
    planned = PLANNED[name](work, work / f"killed-{name}")
    runs.run_killed(*planned, checkpoint="checkpoint-10")
    runs.run_here(*planned, "--resume")
    log = runs.log_of(work / f"killed-{name}")
    runs.check_budget(log, STEPS)
    runs.check_same_run(alone[name][1], log)


@pytest.mark.parametrize("source", ["roberta", "gpt2"])
def test_other_families(source, work):
    """Padding, separators and the place of "no answer" without BERT's tokens."""
    deeper = ["--set", "num_hidden_layers=3" if source == "roberta" else "n_layer=3", "--max-steps", 6]
    deeper += ["--eval-steps", 6, "--save-steps", 6, "--per-device-batch-size", 8]
    runs.run_here(*glue(work, "stsb", work / f"stsb-{source}", *deeper, source=source))
    runs.run_here(*squad(work, work / f"squad-{source}", *deeper, file="v1.1.json", source=source))
    for task in ("stsb", "squad"):
        log = runs.log_of(work / f"{task}-{source}")
        assert log[-1]["eval_loss"] < log[0]["eval_loss"]
    assert not (work / f"squad-{source}" / "null_odds.json").exists()
    folder = work / f"stsb-{source}"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    short, long = ("a short text", "another"), ("a text that is quite a bit longer than the other one", "and more")
    both = tokenizer([short[0], long[0]], [short[1], long[1]], padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        apart = [model(**tokenizer(*pair, return_tensors="pt")).logits for pair in (short, long)]
        torch.testing.assert_close(model(**both).logits, torch.cat(apart))  # padding is not read


def test_several_seeds_from_scratch(work):
    """Mean and spread over runs that differ by their seed alone; --resume skips what is done."""
    size = ["--init", "scratch", "--config", work / "bert", "--tokenizer", work / "bert"]
    data = ["--task", "cola", "--data-dir", work / "glue", "--output-dir", work / "seeds", "--seeds", "1,2"]
    planned = [*GLUE, *size, *data, "--max-steps", 2, "--preset", "paper"]
    result = runs.run_here(*planned)
    each = [json.loads((work / "seeds" / f"seed-{seed}" / "summary.json").read_text()) for seed in (1, 2)]
    values = [summary["metrics"]["eval_loss"] for summary in each]
    assert values[0] != values[1]
    assert result["mean"]["eval_loss"] == pytest.approx(sum(values) / 2)
    assert result["spread"]["eval_loss"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert runs.run_here(*planned, "--resume")["runs"] == result["runs"]
    assert each[0]["training_arguments"]["weight_decay"] == 0.0
    assert each[0]["examples"] == 2 * 16


def test_hub(work, tmp_path, monkeypatch):
    """GLUE's and SQuAD's fields as the datasets library gives them."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"question": ["what is it"] * 4, "sentence": ["a thing", "an other", "a third", "none"], "label": [0, 1] * 2}
    answers = [{"text": ["thing"], "answer_start": [2]}, {"text": [], "answer_start": []}] * 2
    asked = {"id": list("abcd"), "title": ["t"] * 4, "question": ["which?"] * 4, "answers": answers}
    for name, table in (("glue", rows), ("squad", {**asked, "context": ["a thing"] * 4})):
        for split in ("train", "validation"):
            datasets.Dataset.from_dict(table).to_parquet(tmp_path / name / f"{split}.parquet")
    (tmp_path / "glue" / "README.md").write_text(
        "---\nconfigs:\n- config_name: qnli\n  data_files:\n  - split: train\n    path: train.parquet\n"
        "  - split: validation\n    path: validation.parquet\n---\n"
    )
    few = ["--source", work / "bert", "--max-steps", 1, "--batch-size", 2]
    summary = runs.run_here(
        *GLUE, *few, "--task", "qnli", "--dataset", tmp_path / "glue", "--output-dir", tmp_path / "q"
    )
    assert summary["metrics"]["eval_accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    summary = runs.run_here(*SQUAD, *few, "--dataset", tmp_path / "squad", "--output-dir", tmp_path / "s")
    assert summary["metrics"]["eval_no_answer_f1"] in (0, 50, 100)


@pytest.mark.parametrize(
    ("script", "more", "message"),
    [
        ("glue", ["--task", "qqp"], "--data-dir has cola, mrpc, rte, sst2, stsb; read qqp from the hub"),
        ("glue", ["--task", "rte"], "needs train.tsv (or .tsv.xz) and holds no .tsv file"),
        ("glue", ["--eval-split", "test"], "needs test_labeled.tsv (or .tsv.xz) and holds dev.tsv, train.tsv"),
        ("glue", ["--seeds", "1,x"], "--seeds '1,x' is not a list of whole numbers"),
        ("glue", ["--seq-length", "80", "--source", "SHORT"], "is more than the model's 16 positions"),
        ("squad", ["--split-by-title", "900/9"], "--split-by-title 900/9 needs 909 articles, there are"),
        ("squad", ["--split-by-title", "9"], "is not two numbers of articles such as 36/12"),
        ("squad", ["--eval-file", "x.json"], "give either --eval-file FILE or --split-by-title N/M"),
        ("squad", ["--dataset", "x"], "give either --train-file FILE or --dataset NAME"),
        ("squad", ["--train-file", "nowhere.json"], "there is no file nowhere.json"),
        ("squad", ["--train-file", "BROKEN"], "is not in SQuAD's form"),
        ("squad", ["--stride", "60"], "--seq-length 64 leaves 49 tokens for the context beside a question of 12"),
    ],
)
def test_mistakes_are_one_sentence(script, more, message, work, tmp_path, capsys):
    (tmp_path / "broken.json").write_text('{"data": [{}]}')
    config = json.loads((work / "bert" / "config.json").read_text()) | {"max_position_embeddings": 16}
    AutoTokenizer.from_pretrained(work / "bert").save_pretrained(tmp_path)
    BertModel(BertConfig.from_dict(config)).save_pretrained(tmp_path)
    more = [{"BROKEN": tmp_path / "broken.json", "SHORT": tmp_path}.get(word, word) for word in more]
    planned = glue(work, "mrpc", tmp_path / "out") if script == "glue" else squad(work, tmp_path / "out")
    with pytest.raises(SystemExit) as stopped:
        runs.run_here(*planned, *more)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"finetune_{script}.py: ")
    assert message in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\tsentence1\tsentence2\nentailment\ta\n", "line 2: 2 columns instead of 3"),
        ("label\tsentence1\tsentence2\nmaybe\ta\tb\n", "line 2: label 'maybe' is not one of entailment"),
        ("label\tsentence1\n0\ta\n", "has no column 'sentence2'; it has label, sentence1"),
        ("label\tsentence1\tsentence2\n", "has no examples"),
    ],
)
def test_broken_tables(text, message, work, tmp_path, capsys):
    (tmp_path / "RTE").mkdir()
    for name in ("train", "test"):
        (tmp_path / "RTE" / f"{name}.tsv").write_text(text)
    with pytest.raises(SystemExit):
        runs.run_here(*glue(work, "rte", tmp_path / "out", "--data-dir", tmp_path))
    assert message in capsys.readouterr().err


def test_tables_are_read_as_written(work):
    """No header, byte order mark, quotation marks, packed files, a label by name."""
    made = argparse.Namespace(task="cola", data_dir=work / "glue", eval_split=None, max_eval_examples=None)
    train, held = data_glue.glue_examples(made)
    assert (len(train), len(held)) == (400, 60)
    made.task = "mrpc"
    train, _ = data_glue.glue_examples(made)
    assert [label for _, label in train] == [0, 1] * 200
    assert all(texts[1].startswith('"') for texts, _ in train)  # an open quotation mark swallows no line
    assert data_glue._target("not_entailment", data_glue.TASKS["rte"], "here") == 1


def test_windows_hold_the_answers(work):
    """Logits that point at the targets give every answer back, however the context was cut."""
    tokenizer = AutoTokenizer.from_pretrained(work / "bert")
    made = argparse.Namespace(seq_length=48, stride=30, max_question_length=8)
    questions = data_squad._of_file(work / "v2.0.json.xz")[:300]
    cut = data_squad.windows(questions, tokenizer, made)
    assert len(cut.owner) > 1.5 * len(questions)
    start, end = (
        torch.nn.functional.one_hot(cut.rows.columns[name], cut.spans.shape[1]).numpy().astype(numpy.float32)
        for name in ("start_positions", "end_positions")
    )
    found = span_answers.answers(cut, start, end, best=5, longest=30)
    short = [q for q in questions if q.answers and len(tokenizer(q.answers[0][0]).input_ids) <= 20]
    assert len(short) > 50
    for question in short:
        assert question.answers[0][0].strip() in found[question.id].text  # a token may reach beyond the answer
        assert found[question.id].null_odds <= 0
    assert all(found[q.id].null_odds > 0 for q in questions if not q.answers)


def test_best_span_by_hand():
    spans = numpy.array([[-1, -1], [0, 2], [3, 5], [6, 8], [-1, -1]])
    start = numpy.array([9.0, 1.0, 3.0, 0.0, 9.0])
    end = numpy.array([9.0, 5.0, 0.0, 4.0, 9.0])
    assert span_answers.best_span(start, end, spans, best=3, longest=3) == (7.0, 2, 3)  # 8 would end before it starts
    assert span_answers.best_span(start, end, spans, best=3, longest=1) == (6.0, 1, 1)
    assert span_answers.best_span(start, end, spans, best=1, longest=3)[0] == -numpy.inf
    assert span_answers.best_span(start, end, numpy.full((5, 2), -1), best=3, longest=3)[0] == -numpy.inf


def test_squad_metrics_by_hand():
    """Articles, punctuation, case and spaces do not count; bags of words; the best reference; no answer."""
    assert metrics_squad.normalised("The  Cat's an-\tA hat, than") == "cats hat than"
    assert metrics_squad.exact_match("the Cat!", "a cat") == 1
    assert metrics_squad.exact_match("theatre", "atre") == 0
    assert metrics_squad.f1("the cat sat", "a cat on a mat") == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert metrics_squad.f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert (metrics_squad.f1("", "the"), metrics_squad.f1("", "cat"), metrics_squad.f1("dog", "cat")) == (1, 0, 0)
    answers = {"1": "blue cat", "2": "", "3": "dog", "4": ""}
    wanted = {"1": ["red cat", "cat"], "2": [], "3": [], "4": ["bird", "the"]}
    found = metrics_squad.scores(answers, wanted)
    assert found["exact_match"] == 25
    assert found["f1"] == pytest.approx(100 * (2 / 3 + 1) / 4)
    assert (found["has_answer_exact_match"], found["has_answer_f1"]) == (0, pytest.approx(100 / 3))
    assert (found["no_answer_exact_match"], found["no_answer_f1"]) == (50, 50)
    assert metrics_squad.scores({"1": "cat"}, {"1": ["cat"]}) == {"exact_match": 100, "f1": 100}


def test_glue_metrics_by_hand():
    wanted, predicted = numpy.array([1, 1, 1, 0, 0, 0]), numpy.array([1, 1, 0, 0, 0, 1])
    assert metrics_glue.accuracy(predicted, wanted) == pytest.approx(4 / 6)
    assert metrics_glue.f1(predicted, wanted) == pytest.approx(2 / 3)
    assert metrics_glue.matthews(predicted, wanted) == pytest.approx((2 * 2 - 1 * 1) / 9)
    assert metrics_glue.matthews(numpy.ones(6), wanted) == 0
    assert metrics_glue.f1(numpy.zeros(6), wanted) == 0
    scores, other = numpy.array([1.0, 2.0, 2.0, 9.0, 3.0]), numpy.array([2.0, 1.0, 7.0, 9.0, 7.0])
    numpy.testing.assert_array_equal(metrics_glue.ranks(scores), [1, 2.5, 2.5, 5, 4])
    assert metrics_glue.spearman(scores, other) == pytest.approx(scipy.stats.spearmanr(scores, other).statistic)
    assert metrics_glue.pearson(scores, other) == pytest.approx(scipy.stats.pearsonr(scores, other).statistic)
    assert metrics_glue.spearman(scores, -(scores**3)) == pytest.approx(-1)


def test_rows_keep_floats():
    rows = data_rows.Rows({"ids": torch.tensor([[1, 2], [3, 4]], dtype=torch.int32), "labels": torch.tensor([0.5, 1])})
    batch = data_rows.collate([rows[0], rows[1]])
    assert (len(rows), batch["ids"].dtype, batch["labels"].dtype) == (2, torch.int64, torch.float32)
