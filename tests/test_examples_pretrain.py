"""The pretraining scripts on small real data: one process, two, killed and resumed, with a teacher."""

import shutil
import sys

import example_runs as runs
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DeiTConfig,
    DeiTForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import MaskedLMOutput

sys.path.append(str(runs.EXAMPLES))  # as python does for a script in that folder

import checkpoints
import losses
import recipes

pytestmark = pytest.mark.slow

STEPS = 20
COMMON = ["--max-steps", STEPS, "--batch-size", 16, "--per_device_eval_batch_size", 1, "--logging-steps", 5]
COMMON += ["--eval-steps", 10, "--save-steps", 10, "--max-eval-examples", 20]
TEXT = ["--seq-length", 48, "--learning-rate", "2e-3"]
NO_DROPOUT = ["--set", "hidden_dropout_prob=0", "--set", "attention_probs_dropout_prob=0"]

SCRIPTS = {  # name -> how its source is grown, and a class that loads the result
    "pretrain_mlm.py": (
        ["--set", "hidden_size=64", "--set", "num_attention_heads=4", *NO_DROPOUT],
        AutoModelForMaskedLM,
    ),
    "pretrain_clm.py": (["--set", "n_embd=64", "--set", "n_head=4", "--dropout", 0], AutoModelForCausalLM),
    "train_image_classification.py": (
        [
            "--set",
            "num_hidden_layers=3",
            "--learning-rate",
            "3e-3",
            "--batch-size",
            64,
            "--crop-scale",
            0.8,
        ],
        AutoModelForImageClassification,
    ),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with texts and an untrained source for every script."""
    folder = tmp_path_factory.mktemp("pretrain")
    train, _ = runs.write_texts(folder)
    torch.manual_seed(0)
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    bert = PreTrainedTokenizerFast(tokenizer_object=runs.train_tokenizer(train, list(special.values())), **special)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertForMaskedLM(BertConfig(vocab_size=len(bert), max_position_embeddings=64, **sizes)).save_pretrained(
        folder / "pretrain_mlm.py"
    )
    bert.save_pretrained(folder / "pretrain_mlm.py")
    gpt2 = PreTrainedTokenizerFast(tokenizer_object=runs.train_tokenizer(train, ["<end>"]), eos_token="<end>")
    config = GPT2Config(vocab_size=len(gpt2), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder / "pretrain_clm.py")
    gpt2.save_pretrained(folder / "pretrain_clm.py")
    deit = DeiTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, initializer_range=0.1, **sizes)
    classifier = DeiTForImageClassification(deit)
    for token in ("cls_token", "distillation_token", "position_embeddings"):  # transformers starts them at zero, where
        torch.nn.init.normal_(getattr(classifier.deit.embeddings, token), std=0.1)  # the first norm has huge gradients
    classifier.save_pretrained(folder / "train_image_classification.py")
    return folder


def arguments(script, work, output, *more):
    data = ["--data", "digits"] if "image" in script else text(work)
    grow, _ = SCRIPTS[script]
    return [script, "--source", work / script, *data, *COMMON, *grow, "--output-dir", work / output, *more]


def text(work):
    return ["--train-file", work / "topics.txt", "--eval-file", work / "docstrings.txt", *TEXT]


@pytest.fixture(scope="module")
def alone(work):
    """`alone(script)` -> summary and log of an uninterrupted run in one process, made once."""
    made = {}

    def get(script):
        if script not in made:
            summary = runs.run_here(*arguments(script, work, f"alone-{script}"))
            made[script] = summary, runs.log_of(work / f"alone-{script}")
        return made[script]

    return get


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_process(script, work, alone):
    summary, log = alone(script)
    runs.check_budget(log, STEPS)
    assert log[-1]["eval_loss"] < log[0]["eval_loss"] - 0.03
    assert log[-1]["examples"] == STEPS * summary["options"]["batch_size"]
    assert summary["metrics"]["eval_loss"] == log[-1]["eval_loss"]
    assert summary["source"]["method"] == "bot"
    model = SCRIPTS[script][1].from_pretrained(work / f"alone-{script}")
    assert model.num_parameters() == summary["parameters"]
    if script.startswith("pretrain"):
        tokenizer = AutoTokenizer.from_pretrained(work / f"alone-{script}")
        assert tokenizer("a help text")["input_ids"]


def test_two_processes(work, alone):
    """The same global batch gives the same training, however it is split."""
    planned = [arguments(script, work, f"two-{script}") for script in SCRIPTS]
    for script, summary in zip(SCRIPTS, runs.run_launched(*planned), strict=True):
        assert summary["processes"] == 2
        runs.check_same_run(alone(script)[1], runs.log_of(work / f"two-{script}"), tolerance=2e-3)


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_and_resumed(script, work, alone):
    planned = arguments(script, work, f"killed-{script}")
    runs.run_killed(*planned, checkpoint="checkpoint-10")
    broken = work / f"killed-{script}" / "checkpoint-15"  # as a kill while writing leaves it
    shutil.copytree(work / f"killed-{script}" / "checkpoint-10", broken)
    (broken / "trainer_state.json").unlink()
    summary = runs.run_here(*planned, "--resume")
    log = runs.log_of(work / f"killed-{script}")
    runs.check_budget(log, STEPS)
    runs.check_same_run(alone(script)[1], log)
    assert summary["source"] == alone(script)[0]["source"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_teacher_and_accumulation(script, work, alone):
    """With alpha 0 a teacher changes the budget and nothing else; neither does accumulation."""
    more = ["--teacher", work / script, "--distill-alpha", 0, "--per-device-batch-size", 4]
    runs.run_here(*arguments(script, work, f"taught-{script}", *more))
    log, plain = runs.log_of(work / f"taught-{script}"), alone(script)[1]
    assert log[-1]["flops"] > 1.05 * plain[-1]["flops"]
    for row in [*log, *plain]:
        row["flops"] = row["epoch"] = 0  # the trainer counts epochs in micro-batches
    runs.check_same_run(plain, log, tolerance=1e-3)


def test_distilling_from_scratch(work):
    """A student without a source comes nearer to its teacher than one that learns from the data alone."""
    sizes = ["--init", "scratch", "--config", work / "pretrain_clm.py", "--tokenizer", work / "pretrain_clm.py"]
    common = ["pretrain_clm.py", *sizes, *text(work), *COMMON, "--eval-steps", STEPS]
    teacher = AutoModelForCausalLM.from_pretrained(work / "pretrain_clm.py")
    held = torch.arange(48)[None]
    distances = []
    for alpha in (0.0, 1.0):
        output = work / f"distilled-{alpha}"
        runs.run_here(*common, "--teacher", work / "pretrain_clm.py", "--distill-alpha", alpha, "--output-dir", output)
        student = AutoModelForCausalLM.from_pretrained(output)
        with torch.no_grad():
            batch = {"labels": held}
            distances.append(losses.distillation(student(held), teacher(held), batch, True, 1.0).item())
    assert distances[1] < distances[0]


def test_fitted_operator(work):
    """LiGO is fitted on the training text before step 0, and what that costs is in the log."""
    output = work / "ligo"
    more = ["--init", "ligo", "--fit-steps", 2, "--fit-batch-size", 4, "--max-steps", 2, "--eval-steps", 2]
    summary = runs.run_here(*arguments("pretrain_clm.py", work, "ligo", *more))
    log = runs.log_of(output)
    assert log[0]["flops"] == summary["fit_flops"] > 0
    assert summary["source"]["method"] == "ligo"
    assert summary["source"]["fit"]["steps"] == 2
    runs.check_budget(log, 2)


def test_distillation_formula():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    labels = torch.tensor([[1, -100, 2], [-100, -100, 0]])
    p = torch.softmax(teacher / 3, -1)
    divergence = (p * (p.log() - torch.log_softmax(student / 3, -1))).sum(-1)
    expected = 9 * divergence[labels != -100].sum()
    outputs = MaskedLMOutput(logits=student), MaskedLMOutput(logits=teacher)
    torch.testing.assert_close(losses.distillation(*outputs, {"labels": labels}, False, 3.0), expected / 3)
    torch.testing.assert_close(losses.distillation(*outputs, {"labels": labels}, False, 3.0, count=6), expected / 6)
    shifted = divergence[:, :-1][labels[:, 1:] != -100].sum() * 9 / 2
    torch.testing.assert_close(losses.distillation(*outputs, {"labels": labels}, True, 3.0), shifted)


def test_preset_and_flags(work):
    """A recipe sets what no flag sets."""
    digits = ["--data", "digits", "--max-eval-examples", 20, "--max-steps", 2, "--batch-size", 4]
    digits += ["--mixup", 0.8, "--label-smoothing", 0.1]
    output = [
        "--output-dir",
        work / "recipe",
        "--preset",
        "paper-cifar10",
        "--config",
        "deit-tiny",
        "--init",
        "scratch",
    ]
    small = {"image_size": 8, "patch_size": 4, "num_channels": 3, "hidden_size": 24, "num_attention_heads": 3}
    fields = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    summary = runs.run_here("train_image_classification.py", *digits, *output, *fields)
    read, options = summary["training_arguments"], summary["options"]
    assert (read["learning_rate"], read["lr_scheduler_type"], read["dataloader_drop_last"]) == (5e-4, "cosine", True)
    assert (read["max_steps"], read["per_device_train_batch_size"]) == (2, 4)
    assert (options["color_jitter"], options["random_erase"], options["drop_path"]) == (0.4, 0.25, 0.1)
    known = {*read, *options}
    assert all(known >= recipe.keys() for recipe in recipes.IMAGES.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "papre"], "--preset 'papre' does not exist; this script has paper."),
        (["--batch-size", 10, "--per-device-batch-size", 4], "--batch-size 10 cannot be split"),
        (["--train-file", "nowhere.txt"], "there is no file nowhere.txt"),
        (["--set", "hidden_size"], "is not of the form NAME=VALUE"),
        (["--seq-length", 100], "--seq-length 100 is more than the model's 64 positions"),
        (["--config", "roberta-small"], "--config roberta-small is a roberta model"),
        (["--init", "nothing"], "nothing"),
    ],
)
def test_mistakes_are_one_sentence(more, message, work, capsys):
    with pytest.raises(SystemExit) as stopped:
        runs.run_here(*arguments("pretrain_mlm.py", work, "mistake"), *more)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("pretrain_mlm.py: ")
    assert message in said


def test_earlier_run_is_not_overwritten(work, alone, capsys):
    alone("pretrain_mlm.py")
    with pytest.raises(SystemExit):
        runs.run_here(*arguments("pretrain_mlm.py", work, "alone-pretrain_mlm.py"))
    assert "add --resume to continue" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_cut_off_checkpoints_are_passed_over(name, work, alone, tmp_path):
    alone("pretrain_mlm.py")
    for step in (10, 20):
        shutil.copytree(work / "alone-pretrain_mlm.py" / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    assert checkpoints.newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
    path = tmp_path / "checkpoint-20" / name
    path.write_bytes(path.read_bytes()[:-20])
    assert checkpoints.newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    path.unlink()
    assert checkpoints.newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
