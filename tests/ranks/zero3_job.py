"""Two processes with DeepSpeed ZeRO-3 on the CPU: loading, training, and doing it wrongly."""

import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from families import make_inputs
from launched import HEADS, counted, record, target
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from transformers_bot import BoTModelForCausalLM, BoTModelForSequenceClassification, plan, resize_checkpoint

UNTESTED = {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}
SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    **UNTESTED,
}


def gathered(model):
    """Every parameter and buffer of a model that ZeRO-3 has split."""
    found = {}
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        for name, tensor in model.state_dict().items():
            found[name] = tensor.detach().clone()
    return found


def zero3(folder):
    """Without init_distributed before: transformers starts it when it builds a model."""
    assert not dist.is_initialized()
    alive = HfDeepSpeedConfig(SETTINGS)
    with counted() as ran:
        model = BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"))
    assert is_deepspeed_zero3_enabled()
    held = model.transformer.wte.weight.numel()
    state = gathered(model)
    engine, *_ = deepspeed.initialize(
        model=model, config=alive.config, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    inputs = make_inputs(model.config, HEADS["gpt2"], seed=dist.get_rank())
    loss = engine(**inputs, labels=inputs["input_ids"]).loss
    engine.backward(loss)
    engine.step()
    return {"ran": len(ran), "held": held, "state": state, "trained": gathered(model)}


def trainer(folder):
    """As most people meet ZeRO-3: TrainingArguments come first, and keep their DeepSpeed config alive."""
    settings = {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3}, **UNTESTED}
    arguments = TrainingArguments(
        str(folder / "out"), deepspeed=settings, max_steps=2, use_cpu=True, report_to=[], save_strategy="no"
    )
    model = BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"))
    state = gathered(model)
    inputs = make_inputs(model.config, HEADS["gpt2"])
    row = {"input_ids": inputs["input_ids"][0], "labels": inputs["input_ids"][0]}
    loss = Trainer(model, arguments, train_dataset=[row] * 64).train().training_loss
    return {"state": state, "loss": loss}


def new_head(folder):
    alive = HfDeepSpeedConfig(SETTINGS)
    torch.manual_seed(100 + dist.get_rank())
    wanted = target("bert", "BertForSequenceClassification")
    model, info = BoTModelForSequenceClassification.from_pretrained(
        folder / "bert", config=wanted, output_loading_info=True
    )
    del alive
    return {"state": gathered(model), "info": info}


def planned(folder):
    alive = HfDeepSpeedConfig(SETTINGS)
    made = plan(str(folder / "gpt2"), target("gpt2"))
    del alive
    return {"inherited": made.inherited, "steps": len(made.steps)}


def written(folder):
    """A checkpoint written by one process while ZeRO-3 is set up."""
    alive = HfDeepSpeedConfig(SETTINGS)
    if dist.get_rank() == 0:
        resize_checkpoint(folder / "gpt2", folder / "written", target("gpt2"), tokenizer=False)
    dist.barrier()
    del alive
    return load_file(folder / "written" / "model.safetensors")


def inside_zero_init(folder):
    with deepspeed.zero.Init():
        BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"))


def cut_source(folder):
    alive = HfDeepSpeedConfig(SETTINGS)
    try:
        BoTModelForCausalLM.from_pretrained(folder / "cut", config=target("gpt2"))
    finally:
        del alive


if __name__ == "__main__":
    record(
        Path(sys.argv[1]),
        int(os.environ["RANK"]),
        [zero3, trainer, new_head, planned, written, inside_zero_init, cut_source],
    )
    dist.destroy_process_group()
