"""What each gloo rank does in test_olmo2_parallel: build, load, run and compare at every layout, in one start-up."""

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig
from megatron.training.vocab_utils import calculate_padded_vocab_size

from megatron_remit import host
from megatron_remit.convert.megatron_io import CheckpointReader
from megatron_remit.specs.olmo2 import olmo2_layer_spec

# name -> tensor parallel, pipeline parallel, virtual stages, sequence parallel
LAYOUTS = {
    "tp2": (2, 1, None, False),
    "tp2_sequence_parallel": (2, 1, None, True),
    "pp2": (1, 2, None, False),
    "pp2_vpp2": (1, 2, 2, False),
}


def model_config(stored: Any, layout: tuple[int, int, int | None, bool], **overrides: Any) -> GPTModelConfig:
    """The run's model config from the arguments that the checkpoint holds."""
    tp, pp, vpp, sequence_parallel = layout
    transformer = TransformerConfig(
        num_layers=stored.num_layers,
        hidden_size=stored.hidden_size,
        ffn_hidden_size=stored.ffn_hidden_size,
        num_attention_heads=stored.num_attention_heads,
        num_query_groups=stored.num_query_groups,
        kv_channels=stored.kv_channels,
        normalization=stored.normalization,
        layernorm_epsilon=stored.norm_epsilon,
        add_bias_linear=stored.add_bias_linear,
        gated_linear_unit=stored.swiglu,
        activation_func=torch.nn.functional.silu,
        attention_dropout=stored.attention_dropout,
        hidden_dropout=stored.hidden_dropout,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        sequence_parallel=sequence_parallel,
        pipeline_dtype=torch.float32,
        **(
            {
                "transformer_impl": "local",
                "use_cpu_initialization": True,
                "perform_initialization": False,
                "bias_dropout_fusion": False,
                "masked_softmax_fusion": False,
                "persist_layer_norm": False,
            }
            | overrides
        ),
    )
    return GPTModelConfig(
        transformer=transformer,
        transformer_layer_spec=olmo2_layer_spec,
        vocab_size=calculate_padded_vocab_size(stored.remit_vocab_size, stored.make_vocab_size_divisible_by, tp),
        seq_length=stored.max_position_embeddings,
        position_embedding_type=stored.position_embedding_type,
        rotary_base=stored.rotary_base,
    )


def build(stored: Any, layout: tuple[int, int, int | None, bool]) -> list[torch.nn.Module]:
    """This rank's model chunks, with process groups of the layout."""
    tp, pp, vpp, _ = layout
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tp, pp, virtual_pipeline_model_parallel_size=vpp)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    builder = GPTModelBuilder(model_config(stored, layout))
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


def forward(chunks: list[torch.nn.Module], ids_BS: torch.Tensor) -> torch.Tensor | None:
    """Run the pipeline by hand: this rank's part [B, S, V / TP] of the logits, None where there is no last stage."""
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    here = parallel_state.get_pipeline_model_parallel_rank()
    positions = torch.arange(ids_BS.size(1)).expand_as(ids_BS)
    output = None
    for step in range(len(chunks) * stages):
        chunk, stage = divmod(step, stages)
        if stage != here:
            continue
        if step:
            hidden_SBH = torch.empty(ids_BS.size(1), ids_BS.size(0), chunks[chunk].config.hidden_size)
            torch.distributed.recv(hidden_SBH, src=(stage - 1) % stages)
            chunks[chunk].set_input_tensor(hidden_SBH)
        output = chunks[chunk](ids_BS, positions, None)
        if step < len(chunks) * stages - 1:
            torch.distributed.send(output.detach().contiguous(), dst=(stage + 1) % stages)
            output = None
    return output


def compare_layouts(rank: int, folder: Path, cases: list[str]) -> None:
    """For each case folder and layout: the largest difference of logits and of each gradient from HF, saved by rank."""
    host.install()
    report: dict[tuple[str, str], dict[str, float]] = {}
    for case in cases:
        truth = torch.load(folder / case / "truth.pt")
        stored = CheckpointReader(folder / case / "weights").arguments
        for name, layout in LAYOUTS.items():
            chunks = build(stored, layout)
            for chunk, state in zip(chunks, load(chunks, folder / case / "weights"), strict=True):
                chunk.load_state_dict(state)
            report[case, name] = _differences(chunks, truth, layout, folder / case / "gradients")
    torch.save(report, folder / f"report{rank}.pt")


def _differences(chunks: list[torch.nn.Module], truth: dict, layout: tuple, gradients: Path) -> dict[str, float]:
    logits_BSv = forward(chunks, truth["ids"])
    found = {}
    if logits_BSv is not None:
        whole = gather_from_tensor_model_parallel_region(logits_BSv.detach())
        found["logits"] = (whole[..., : truth["logits"].size(-1)] - truth["logits"]).abs().max().item()
    if layout[1] == 1:
        found |= _gradient_differences(chunks[0], logits_BSv, truth["direction"], layout[3], gradients)
    return found


def _gradient_differences(
    model: torch.nn.Module,
    logits_BSv: torch.Tensor,
    direction_BSV: torch.Tensor,
    sequence_parallel: bool,
    gradients: Path,
) -> dict[str, float]:
    """Relative difference of each parameter's gradient from HF's, which is stored and resharded like a weight."""
    width = logits_BSv.size(-1)
    start = parallel_state.get_tensor_model_parallel_rank() * width
    padding = start + width - direction_BSV.size(-1)
    padded = torch.nn.functional.pad(direction_BSV, (0, max(0, padding)))
    (logits_BSv * padded[..., start : start + width]).sum().backward()
    expected = load([model], gradients)[0]
    differences = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        # What Megatron's finalize_model_grads does after the backward pass.
        if sequence_parallel and getattr(parameter, "sequence_parallel", False):
            torch.distributed.all_reduce(gradient)
        differences[name] = ((gradient - expected[name]).abs().max() / expected[name].abs().max()).item()
    return differences
