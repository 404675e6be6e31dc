"""Two gloo processes under torchrun: DDP, transformers' FSDP2 and tensor parallelism, errors, calls of some only."""

import contextlib
import os
import resource
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from families import make_inputs
from launched import HEADS, counted, record, target, whole_state
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import transformers_bot
from transformers_bot import BoTModelForCausalLM, BoTModelForMaskedLM, BoTModelForSequenceClassification

LAYER_PLAN = {"transformer.h.*": "free_full_weight"}
TENSOR_PLAN = {
    "bert.encoder.layer.*.attention.self.query": "colwise",
    "bert.encoder.layer.*.attention.self.key": "colwise",
    "bert.encoder.layer.*.attention.self.value": "colwise",
    "bert.encoder.layer.*.attention.output.dense": "rowwise",
    "bert.encoder.layer.*.intermediate.dense": "colwise",
    "bert.encoder.layer.*.output.dense": "rowwise",
}


def fsdp2_starts_the_group(folder):
    """Without init_process_group before: transformers starts the group itself for distributed_config."""
    assert not dist.is_initialized()
    return fsdp2(folder)


def fsdp2(folder):
    split = DistributedConfig(fsdp_size=2, fsdp_plan=LAYER_PLAN)
    with counted() as ran:
        model = BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"), distributed_config=split)
    is_split = type(model.transformer.h[0].mlp.c_fc.weight).__name__
    with torch.no_grad():
        logits = model(**make_inputs(model.config, HEADS["gpt2"])).logits
    return {"ran": len(ran), "type": is_split, "state": whole_state(model), "logits": logits}


def tensor_parallel(folder):
    split = DistributedConfig(tp_size=2, tp_plan=TENSOR_PLAN)
    with counted() as ran:
        model = BoTModelForMaskedLM.from_pretrained(folder / "bert", config=target("bert"), distributed_config=split)
    local = model.bert.encoder.layer[0].intermediate.dense.weight
    local = tuple(getattr(local, "_local_tensor", local).shape)
    with torch.no_grad():
        logits = model(**make_inputs(model.config, HEADS["bert"])).logits
    return {"ran": len(ran), "local": local, "state": whole_state(model), "logits": logits}


def ddp(folder):
    with counted() as ran:
        model = BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"))
    state, generation = whole_state(model), model.generation_config.to_dict()
    parallel = DistributedDataParallel(model.train())
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    inputs = make_inputs(model.config, HEADS["gpt2"], seed=dist.get_rank())
    parallel(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    # Both have loaded, for they have trained a step; nobody goes on to the next scenario before both have looked.
    left = list(Path(tempfile.gettempdir()).glob("transformers-bot-*"))
    dist.barrier()
    return {"ran": len(ran), "state": state, "trained": whole_state(model), "left": len(left), "generation": generation}


def new_head(folder):
    """Every rank with a seed of its own."""
    torch.manual_seed(100 + dist.get_rank())
    wanted = target("bert", "BertForSequenceClassification")
    model, info = BoTModelForSequenceClassification.from_pretrained(
        folder / "bert", config=wanted, output_loading_info=True
    )
    return {"state": whole_state(model), "info": info}


def new_head_same_seed(folder):
    torch.manual_seed(7)
    wanted = target("bert", "BertForSequenceClassification")
    model = BoTModelForSequenceClassification.from_pretrained(folder / "bert", config=wanted)
    told = {"provenance": model.config.transformers_bot, "name": model.config.name_or_path}
    told |= {"report": model.transfer_report.to_dict(), "push": type(model.push_to_hub).__name__}
    return {"state": whole_state(model), "next": torch.rand(3), **told}


def integration(folder):
    with transformers_bot.integration(), counted() as ran:
        model = AutoModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"))
    return {"ran": len(ran), "state": whole_state(model)}


def cut_source(folder):
    BoTModelForCausalLM.from_pretrained(folder / "cut", config=target("gpt2"))


def cut_source_split(folder):
    split = DistributedConfig(fsdp_size=2, fsdp_plan=LAYER_PLAN)
    BoTModelForCausalLM.from_pretrained(folder / "cut", config=target("gpt2"), distributed_config=split)


def full_disk(folder):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def two_nodes_new_head(folder):
    """Processes without a common temporary folder count as two nodes; each makes its own, with the same draws."""
    wanted = target("bert", "BertForSequenceClassification")
    torch.manual_seed(100 + dist.get_rank())
    with own_node(), counted() as ran:
        model = BoTModelForSequenceClassification.from_pretrained(folder / "bert", config=wanted)
    return {"ran": len(ran), "state": whole_state(model)}


def two_nodes_full_disk(folder):
    """Rank 0's node has no room; rank 1's has, and must not go on to load."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    split = DistributedConfig(fsdp_size=2, fsdp_plan=LAYER_PLAN)
    try:
        with own_node():
            BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2"), distributed_config=split)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def own_node():
    before = tempfile.gettempdir()
    tempfile.tempdir = tempfile.mkdtemp(dir=before)
    try:
        yield
    finally:
        tempfile.tempdir = before


def different_calls(folder):
    split = DistributedConfig(fsdp_size=2, fsdp_plan=LAYER_PLAN)
    wanted = target("gpt2", layer=3 + dist.get_rank())
    BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=wanted, distributed_config=split)


def main_process_first(folder):
    """As in accelerate: the others wait at a barrier until rank 0 has left the block."""
    if dist.get_rank() != 0:
        dist.barrier()
    with counted() as ran:
        model = BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2", layer=3))
    if dist.get_rank() == 0:
        dist.barrier()
    return {"ran": len(ran), "state": whole_state(model)}


def rank_0_alone(folder):
    if dist.get_rank() == 0:
        model = BoTModelForCausalLM.from_pretrained(folder / "gpt2", config=target("gpt2", layer=5))
        return {"layers": model.config.n_layer}
    return {}


def disk_offload(folder):
    """A model that goes on reading files cannot share a folder that is removed."""
    own = folder / f"offload{dist.get_rank()}"
    where = {"transformer.h": "disk", "transformer.wte": "cpu", "transformer.wpe": "cpu"}
    where |= {"transformer.ln_f": "cpu", "lm_head": "cpu"}
    model = BoTModelForCausalLM.from_pretrained(
        folder / "gpt2", config=target("gpt2"), device_map=where, offload_folder=own
    )
    dist.barrier()
    return {"logits": model(**make_inputs(model.config, HEADS["gpt2"])).logits.detach()}


if __name__ == "__main__":
    loading = [fsdp2_starts_the_group, fsdp2, tensor_parallel, ddp, new_head, new_head_same_seed, integration]
    asking = [main_process_first, rank_0_alone, disk_offload, two_nodes_new_head]
    failing = [cut_source, cut_source_split, full_disk, two_nodes_full_disk, different_calls]
    record(Path(sys.argv[1]), int(os.environ["RANK"]), loading + asking + failing)
    dist.destroy_process_group()
