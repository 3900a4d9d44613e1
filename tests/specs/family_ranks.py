"""What each gloo rank does in test_family_parallel: build, load, run and compare at every layout, in one start-up."""

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed.finalize_model_grads import _allreduce_non_tensor_model_parallel_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.utils import get_batch_on_this_cp_rank
from megatron.training import checkpointing
from megatron.training.arguments import parse_args, validate_args
from megatron.training.models.gpt import GPTModelBuilder

from megatron_remit import cpu, patches
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.nll import Vocabulary, token_nll
from megatron_remit.specs.native import gpt_config

# name -> what a user adds to the command line
_PP2 = ("--pipeline-model-parallel-size", "2")
LAYOUTS = {
    "tp1": (),
    "tp2": ("--tensor-model-parallel-size", "2"),
    "tp2_sequence_parallel": ("--tensor-model-parallel-size", "2", "--sequence-parallel"),
    "pp2": _PP2,
    "pp2_vpp2": (*_PP2, "--num-layers-per-virtual-pipeline-stage", "1"),
    "cp2": ("--context-parallel-size", "2"),
    "ep2": ("--expert-model-parallel-size", "2"),
}


def run_arguments(folder: Path, layout: str) -> Namespace:
    """The arguments of a run from the checkpoint in ``folder``: its shape comes from there."""
    flags = (
        "--load",
        str(folder),
        "--use-checkpoint-args",
        "--seq-length",
        "32",
        "--micro-batch-size",
        "2",
        "--global-batch-size",
        "4",
        "--train-iters",
        "1",
        "--lr",
        "1",
    )
    sys.argv = ["pretrain", *flags, *LAYOUTS[layout]]
    args = parse_args(add_remit_arguments)
    checkpointing.load_args_from_checkpoint(args)
    return validate_args(args)


_layouts: dict[tuple, dict[str, Any]] = {}


def use_layout(**sizes: int | bool | None) -> None:
    """Megatron's process groups of these sizes, made once in this process and then switched to.

    The threads of gloo's groups stay until the process ends, and those of hundreds of groups fight over the cores.
    """
    parallel_state.destroy_model_parallel()
    key = tuple(sorted(sizes.items()))
    if key not in _layouts:
        parallel_state.initialize_model_parallel(**sizes)
        _layouts[key] = {name: value for name, value in vars(parallel_state).items() if name.startswith("_")}
    vars(parallel_state).update(_layouts[key])


def build(args: Namespace) -> list[torch.nn.Module]:
    """This rank's model chunks, with process groups of the layout."""
    vpp = args.virtual_pipeline_model_parallel_size
    use_layout(
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=vpp,
        context_parallel_size=args.context_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
        expert_tensor_parallel_size=args.expert_tensor_parallel_size,
    )
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    builder = GPTModelBuilder(gpt_config(args))
    groups = ProcessGroupCollection.use_mpu_process_groups()
    stages = [None] if vpp is None else range(vpp)
    return [builder.build_model(groups, vp_stage=stage) for stage in stages]


def load(chunks: list[torch.nn.Module], folder: Path) -> list[dict[str, Any]]:
    """The checkpoint's tensors for this rank's chunks, resharded by Megatron's own loader."""
    metadata = {
        "singleton_local_shards": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    request = {f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(chunks)}
    loaded = dist_checkpointing.load(request, str(folder / "release"))
    # load() fills the parameters' own storage; copies keep a second load from changing the first.
    return [
        {name: value.clone() if torch.is_tensor(value) else value for name, value in loaded[f"model{i}"].items()}
        for i in range(len(chunks))
    ]


def on_this_rank(value_BS: torch.Tensor) -> torch.Tensor:
    """This context-parallel rank's part of the sequences [B, S, ..]."""
    group = parallel_state.get_context_parallel_group()
    return get_batch_on_this_cp_rank({"part": value_BS}, is_hybrid_cp=False, cp_group=group)["part"]


def forward(
    chunks: list[torch.nn.Module], ids_BS: torch.Tensor, vocabulary: int, labels_BS: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Run the pipeline by hand on whole sequences [B, S]: the logits [B, S / CP, V / TP] of this rank, or the NLL
    [B, S / CP] of the labels; None where there is no last stage."""
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    here = parallel_state.get_pipeline_model_parallel_rank()
    positions = on_this_rank(torch.arange(ids_BS.size(1)).expand_as(ids_BS))
    ids_BS = on_this_rank(ids_BS)
    labels_BS = None if labels_BS is None else on_this_rank(labels_BS)
    output = None
    for step in range(len(chunks) * stages):
        chunk, stage = divmod(step, stages)
        if stage != here:
            continue
        if step:
            hidden_SBH = torch.empty(ids_BS.size(1), ids_BS.size(0), chunks[chunk].config.hidden_size)
            torch.distributed.recv(hidden_SBH, src=(stage - 1) % stages)
            chunks[chunk].set_input_tensor(hidden_SBH)
        output = chunks[chunk](
            ids_BS,
            positions,
            None,
            labels=labels_BS,
            output_processor=token_nll,
            output_processor_context=Vocabulary(vocabulary),
        )
        if step < len(chunks) * stages - 1:
            torch.distributed.send(output.detach().contiguous(), dst=(stage + 1) % stages)
            output = None
    return output


def compare_layouts(rank: int, folder: Path, runs: list[tuple[str, str]]) -> None:
    """For each case folder and layout: the largest difference of logits and of each gradient from HF, saved by rank."""
    cpu.install()
    patches.apply()
    report: dict[tuple[str, str], dict[str, float]] = {}
    for case, layout in runs:
        args = run_arguments(folder / case / "weights", layout)
        chunks = build(args)
        for chunk, state in zip(chunks, load(chunks, folder / case / "weights"), strict=True):
            chunk.load_state_dict(state)
        truth = torch.load(folder / case / "truth.pt")
        report[case, layout] = _differences(chunks, truth, args, folder / case / "gradients")
    torch.save(report, folder / f"report{rank}.pt")


def _differences(chunks: list[torch.nn.Module], truth: dict, args: Namespace, gradients: Path) -> dict[str, Any]:
    vocabulary = truth["logits"].size(-1)
    with torch.no_grad():
        nll_BS = forward(chunks, truth["ids"], vocabulary, truth["labels"])
    logits_BSv = forward(chunks, truth["ids"], vocabulary)
    found: dict[str, Any] = {}
    if logits_BSv is not None:
        whole_BSV = gather_from_tensor_model_parallel_region(logits_BSv.detach())
        found["logits"] = (whole_BSV[..., :vocabulary] - on_this_rank(truth["logits"])).abs().max().item()
        found["padding"] = whole_BSV.size(-1) - vocabulary
        found["largest padding logit"] = whole_BSV[..., vocabulary:].max().item() if found["padding"] else None
        found["nll"] = (nll_BS - on_this_rank(truth["nll"])).abs().max().item()
    if args.pipeline_model_parallel_size == 1:
        found["gradients"] = _gradient_differences(chunks[0], logits_BSv, on_this_rank(truth["direction"]), gradients)
    return found


def _gradient_differences(
    model: torch.nn.Module, logits_BSv: torch.Tensor, direction_BSV: torch.Tensor, gradients: Path
) -> dict[str, float]:
    """Relative difference of each parameter's gradient from HF's, which is stored and resharded like a weight."""
    start = parallel_state.get_tensor_model_parallel_rank() * logits_BSv.size(-1)
    direction_BSv = direction_BSV[..., start : start + logits_BSv.size(-1)]
    (logits_BSv[..., : direction_BSv.size(-1)] * direction_BSv).sum().backward()
    for parameter in model.parameters():
        torch.distributed.all_reduce(parameter.grad, group=parallel_state.get_context_parallel_group())
    model.ddp_config = SimpleNamespace(use_megatron_fsdp=False)
    _allreduce_non_tensor_model_parallel_grads([model], model.config)
    for name, parameter in model.named_parameters():
        if ".experts." in name:  # every rank reads the same sequences, and sends their tokens to this rank's experts
            parameter.grad /= parallel_state.get_expert_model_parallel_world_size()
    expected = load([model], gradients)[0]
    return {
        name: ((parameter.grad - expected[name]).abs().max() / expected[name].abs().max()).item()
        for name, parameter in model.named_parameters()
    }
