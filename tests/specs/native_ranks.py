"""What each gloo rank does in test_native: the torch-native layers against Megatron's own local ones, and over TP."""

from types import SimpleNamespace

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed.finalize_model_grads import _allreduce_non_tensor_model_parallel_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.core.utils import get_batch_on_this_cp_rank
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig, default_layer_spec

from megatron_remit import cpu
from megatron_remit.specs.attention import gather_zigzag
from megatron_remit.specs.native import native_layer_spec
from tests.specs.family_ranks import use_layout

VOCABULARY, LENGTH = 64, 16
LATENT = {
    "multi_latent_attention": True,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 12,
    "kv_channels": 12,
    "rope_type": "rope",
    "qk_layernorm": True,
    "num_query_groups": None,
}
# name -> (fields of the transformer config, fields of the model config)
CASES = {
    "llama": ({}, {}),
    "qwen3": ({"qk_layernorm": True, "kv_channels": 12}, {}),
    "smollm3": ({"no_rope_freq": 2}, {"share_embeddings_and_output_weights": True}),
    "windows": ({"window_size": (4, 0), "window_attn_skip_freq": 2}, {}),
    "bias_and_layernorm": (
        {"normalization": "LayerNorm", "add_bias_linear": True, "add_qkv_bias": True, "gated_linear_unit": False},
        {"position_embedding_type": "learned_absolute"},
    ),
    "latent": (LATENT, {}),
    "latent_narrow_values": (LATENT | {"v_head_dim": 6}, {}),
    "latent_without_norms": (LATENT | {"qk_layernorm": False}, {}),
    "latent_without_query_rank": (LATENT | {"q_lora_rank": None, "qk_layernorm": False}, {}),
}
# name -> tensor parallel, context parallel, sequence parallel
LAYOUTS = {"tp2": (2, 1, False), "tp2_sequence_parallel": (2, 1, True), "cp2": (1, 2, False)}


def build(case, spec, tp=1, cp=1, sequence_parallel=False):
    """A GPTModel of the case on one pipeline stage, its process groups made."""
    transformer, model = CASES[case]
    use_layout(tensor_model_parallel_size=tp, context_parallel_size=cp)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    kind = MLATransformerConfig if transformer.get("multi_latent_attention") else TransformerConfig
    fields = {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-5,
        "add_bias_linear": False,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tensor_model_parallel_size": tp,
        "context_parallel_size": cp,
        "sequence_parallel": sequence_parallel,
        "transformer_impl": "local",
        "use_cpu_initialization": True,
        "perform_initialization": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        "apply_rope_fusion": False,
    } | transformer
    config = GPTModelConfig(
        transformer=kind(**fields),
        transformer_layer_spec=spec,
        vocab_size=VOCABULARY,
        seq_length=LENGTH,
        **({"position_embedding_type": "rope", "rotary_base": 5000} | model),
    )
    chunk = GPTModelBuilder(config).build_model(ProcessGroupCollection.use_mpu_process_groups())
    chunk.ddp_config = SimpleNamespace(use_megatron_fsdp=False)
    return chunk


class LatentDotProductAttention(DotProductAttention):
    """Megatron's attention, made to accept the two width arguments that Megatron's own latent spec passes."""

    def __init__(self, *args, k_channels=None, v_channels=None, **kwargs):
        assert k_channels == v_channels
        super().__init__(*args, **kwargs)


def megatron_layer_spec(config, vp_stage=None):
    spec = default_layer_spec(config, vp_stage)
    if config.transformer.multi_latent_attention:
        spec.submodules.self_attention.submodules.core_attention = LatentDotProductAttention
    return spec


def megatron_name(name):
    """Our parameter's name in Megatron's local layout, where no norm is inside a projection."""
    for part in ("q", "kv"):
        name = name.replace(f"linear_{part}_up_proj.layer_norm_weight", f"{part}_layernorm.weight")
    return name


def forward_backward(model, mask):
    """Whole logits [S, B, V] and the parameters' gradients as Megatron leaves them after its reductions over CP and TP.

    ``mask``: "none" (the layers' own causality), "causal" or "documents" (a tensor; documents end at uneven places).
    """
    draw = torch.Generator().manual_seed(3)
    hidden = torch.ones(2, 1, LENGTH, LENGTH).triu(1).bool()
    if mask == "documents":
        for row, ends in enumerate(((3, 4, 11), (9,))):
            for end in ends:
                hidden[row, 0, end:, :end] = True
    batch = get_batch_on_this_cp_rank(
        {
            "ids": torch.randint(0, VOCABULARY, (2, LENGTH), generator=draw),
            "direction": torch.randn(2, LENGTH, VOCABULARY, generator=draw),
            "positions": torch.arange(LENGTH).expand(2, -1),
            "attention_mask": None if mask == "none" else hidden,
        },
        is_hybrid_cp=False,
        cp_group=parallel_state.get_context_parallel_group(),
    )
    for parameter in model.parameters():
        parameter.grad = None
    logits_Bsv = model(batch["ids"], batch["positions"], batch["attention_mask"])
    width = logits_Bsv.size(-1)
    start = parallel_state.get_tensor_model_parallel_rank() * width
    (logits_Bsv * batch["direction"][..., start : start + width]).sum().backward()
    for parameter in model.parameters():
        torch.distributed.all_reduce(parameter.grad, group=parallel_state.get_context_parallel_group())
    _allreduce_non_tensor_model_parallel_grads([model], model.config)
    logits_sBV = gather_from_tensor_model_parallel_region(logits_Bsv.detach()).transpose(0, 1)
    logits_SBV = gather_zigzag(logits_sBV.contiguous(), parallel_state.get_context_parallel_group())
    return logits_SBV, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def sharded(model):
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return model.sharded_state_dict(metadata={"dp_cp_group": group, "singleton_local_shards": False})


def stored_names(model):
    """The names in a checkpoint of the model, where all layers share a name."""
    return sorted({entry.key for entry in sharded(model).values() if "_extra_state" not in entry.key})


def store(model, folder):
    torch.distributed.barrier()
    folder.mkdir(exist_ok=True)
    dist_checkpointing.save(sharded(model), str(folder))


def restore(model, folder):
    """The tensors of ``folder`` by the model's own names; the parameters stay as they are."""
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.load_state_dict(dist_checkpointing.load(sharded(model), str(folder)))
    found = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
    return found


def fill(model, values):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])


def difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def random_weights(model):
    draw = torch.Generator().manual_seed(5)
    return {
        name: torch.rand(parameter.shape, generator=draw) + 0.5
        if parameter.ndim == 1 and "bias" not in name
        else torch.randn(parameter.shape, generator=draw) * 0.1
        for name, parameter in model.named_parameters()
    }


def differences(found, expected):
    """Of logits and of each gradient, relative to the largest entry."""
    (logits, gradients), (expected_logits, expected_gradients) = found, expected
    return {"logits": difference(logits, expected_logits)} | {
        name: difference(gradient, expected_gradients[name]) for name, gradient in gradients.items()
    }


def compare(rank, folder):
    """For each case and mask: native at one rank against Megatron's own layers, at two ranks against one."""
    cpu.install()
    report = {}
    for case in CASES:
        native = build(case, native_layer_spec)
        values = random_weights(native)
        fill(native, values)
        one = {mask: forward_backward(native, mask) for mask in ("none", "documents")}
        report[case, "names"] = stored_names(native)
        store(native, folder / f"{case}_weights")
        for mask, (_, gradients) in one.items():
            fill(native, gradients)
            store(native, folder / f"{case}_{mask}")
        if case != "latent_narrow_values":
            theirs = build(case, megatron_layer_spec)
            fill(theirs, {megatron_name(name): value for name, value in values.items()})
            report[case, "megatron names"] = stored_names(theirs)
            for mask in one:
                logits, gradients = forward_backward(theirs, "causal" if mask == "none" else mask)
                named = {name: gradients[megatron_name(name)] for name in values}
                report[case, "megatron", mask] = differences(one[mask], (logits, named))
        for layout, (tp, cp, sequence_parallel) in LAYOUTS.items():
            split = build(case, native_layer_spec, tp, cp, sequence_parallel)
            fill(split, restore(split, folder / f"{case}_weights"))
            for mask in one:
                expected = one[mask][0], restore(split, folder / f"{case}_{mask}")
                report[case, layout, mask] = differences(forward_backward(split, mask), expected)
    torch.save(report, folder / f"report{rank}.pt")
