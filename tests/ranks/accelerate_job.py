"""Two processes under `accelerate launch`: before Accelerator(), prepare(), FSDP2 with one filled rank."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from families import make_inputs
from launched import HEADS, counted, record, target, whole_state
from transformers.integrations import is_fsdp_enabled

from transformers_bot import BoTModelForCausalLM, BoTModelForSequenceClassification


def before_accelerator(folder):
    """No process group yet: each process resizes for itself."""
    assert not dist.is_initialized()
    with counted() as ran:
        model = BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"))
    return {"ran": len(ran), "state": whole_state(model)}


def prepared(folder):
    accelerator = Accelerator()
    with accelerator.main_process_first(), counted() as ran:
        model = BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    inputs = make_inputs(accelerator.unwrap_model(model).config, HEADS["gpt2"], seed=accelerator.process_index)
    start = whole_state(accelerator.unwrap_model(model))
    accelerator.backward(model(**inputs, labels=inputs["input_ids"]).loss)
    optimizer.step()
    end = whole_state(accelerator.unwrap_model(model))
    return {"ran": len(ran), "wrapper": type(model).__name__, "state": start, "trained": end}


def fsdp2_gpt2(folder):
    return _fsdp2(BoTModelForCausalLM, folder / "gpt2", target("gpt2"), "GPT2Block")


def fsdp2_bert(folder):
    """With a new head. (BertForMaskedLM's tied biases are more than accelerate 1.15 with torch 2.13 can split.)"""
    torch.manual_seed(dist.get_rank())
    wanted = target("bert", "BertForSequenceClassification")
    return _fsdp2(BoTModelForSequenceClassification, folder / "bert", wanted, "BertLayer")


def _fsdp2(factory, source, wanted, layer):
    """accelerate's own sharding, which it chooses only on accelerators: called through what it reads of one."""
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_CPU_RAM_EFFICIENT_LOADING="true")
    try:
        assert is_fsdp_enabled()
        with counted() as ran:
            model = factory.from_pretrained(source, config=wanted)
        assert is_fsdp_enabled()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[layer],
            cpu_ram_efficient_loading=True,
        )
        accelerator = SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin),
            mixed_precision="no",
            is_main_process=dist.get_rank() == 0,
            device=torch.device("cpu"),
        )
        if dist.get_rank() != 0:  # what the other ranks hold must not count
            for parameter in model.parameters():
                parameter.data.fill_(torch.nan)
        model = fsdp2_prepare_model(accelerator, model)
        with torch.no_grad():
            logits = model(**make_inputs(model.config, wanted.architectures[0])).logits
        return {"ran": len(ran), "state": whole_state(model), "logits": logits}
    finally:
        del os.environ["ACCELERATE_USE_FSDP"], os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"]


if __name__ == "__main__":
    record(Path(sys.argv[1]), int(os.environ["RANK"]), [before_accelerator, prepared, fsdp2_gpt2, fsdp2_bert])
    dist.destroy_process_group()
