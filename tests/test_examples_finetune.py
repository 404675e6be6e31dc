"""The fine-tuning scripts on data in the layouts of GLUE and SQuAD: one process, two, killed, three families."""

import json
import lzma
import math
import sys

import example_runs as runs
import pytest
import torch
from finetune_data import write_glue, write_sources, write_squad
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

sys.path.append(str(runs.EXAMPLES))  # as python does for a script in that folder

import metrics_squad

pytestmark = pytest.mark.slow

STEPS = 20
COMMON = ["--batch-size", 16, "--logging-steps", 5, "--eval-steps", 10, "--save-steps", 10, "--learning-rate", "5e-3"]
GROW = ["--set", "hidden_size=64", "--set", "num_attention_heads=4"]
# The trainer's loss of two processes is the mean over examples only where the batches come out even.
GLUE = ["finetune_glue.py", *COMMON, "--max-eval-examples", 56, "--per_device_eval_batch_size", 4, "--seq-length", 40]
SQUAD = ["finetune_squad.py", *COMMON, "--max-eval-examples", 24, "--per_device_eval_batch_size", 1]
SQUAD += ["--seq-length", 64, "--stride", 16, "--max-question-length", 12]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with data and an untrained source of every family."""
    folder = tmp_path_factory.mktemp("finetune")
    write_glue(folder / "glue")
    for impossible in (False, True):
        write_squad(folder, impossible)
    write_sources(folder)
    return folder


def glue(work, task, output, *more, source="bert"):
    data = ["--task", task, "--data-dir", work / "glue", "--source", work / source]
    return [*GLUE, *data, *([] if "--max-steps" in more else ["--max-steps", STEPS]), "--output-dir", output, *more]


def squad(work, output, *more, file="v2.0.json.xz", source="bert"):
    data = ["--train-file", work / file, "--split-by-title", "50/10", "--source", work / source]
    return [*SQUAD, *data, *([] if "--max-steps" in more else ["--max-steps", STEPS]), "--output-dir", output, *more]


# A seed whose new head learns within these few steps; with others it may still say the same of every pair.
LEARNS = ["--seed", 2]
PLANNED = {
    "mrpc": lambda work, *more: glue(work, "mrpc", *more, *GROW, *LEARNS),
    "squad": lambda *given: squad(*given, *GROW),
}


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


@pytest.mark.parametrize("name", PLANNED)
def test_teacher_and_accumulation(name, work, alone):
    """With alpha 0 a teacher changes the budget and nothing else; neither does accumulation."""
    more = ["--teacher", work / f"alone-{name}", "--distill-alpha", 0, "--per-device-batch-size", 8]
    runs.run_here(*PLANNED[name](work, work / f"taught-{name}", *more))
    log, plain = runs.log_of(work / f"taught-{name}"), alone[name][1]
    assert log[-1]["flops"] > 1.2 * plain[-1]["flops"]
    # The trainer counts an odd number of micro-batches into its epochs.
    alike = [[{**row, "flops": 0, "epoch": 0} for row in rows] for rows in (plain, log)]
    runs.check_same_run(*alike, tolerance=2e-3)


@pytest.mark.parametrize("source", ["roberta", "gpt2"])
def test_other_families(source, work):
    """Padding, separators and the place of "no answer" without BERT's tokens, in mixed precision."""
    deeper = ["--set", "num_hidden_layers=3" if source == "roberta" else "n_layer=3", "--max-steps", 6]
    deeper += ["--eval-steps", 6, "--save-steps", 6, "--bf16"]
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
    """Mean and spread over runs that differ by their seed alone; --resume repeats nothing."""
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
