"""What the families with experts have in common: the name table of such a layer, its arguments, what is refused.

Megatron's names are the same for experts that run one after the other (``SequentialMLP``, here without Transformer
Engine) and for Transformer Engine's grouped GEMM (``TEGroupedMLP``): ``experts`` twice, then the linear layer, with
layer and expert as the first two axes. The norm in front of the router is a module of its own in both.

Axes in addition to those of llama_like: E experts, X feed-forward units of one expert.
"""

from typing import Any

from megatron_remit.convert.llama_like import LAYER, MLP
from megatron_remit.convert.rules import GATE_UP, SAME, Config, Rule
from megatron_remit.model_arguments import neutral

EXPERTS, NORM = f"{MLP}.experts.experts", "decoder.layers.pre_mlp_layernorm"
RULES = (
    Rule(f"{NORM}.weight", {f"{LAYER}.post_attention_layernorm.weight": "H"}, SAME),
    Rule(f"{MLP}.router.weight", {f"{LAYER}.mlp.gate.weight": "EH"}, SAME),
    Rule(
        f"{EXPERTS}.linear_fc1.weight",
        {f"{LAYER}.mlp.experts.{{e}}.gate_proj.weight": "XH", f"{LAYER}.mlp.experts.{{e}}.up_proj.weight": "XH"},
        GATE_UP,
        experts=True,
    ),
    Rule(f"{EXPERTS}.linear_fc2.weight", {f"{LAYER}.mlp.experts.{{e}}.down_proj.weight": "HX"}, SAME, experts=True),
)
EXTRA_STATE = {NORM: False, f"{EXPERTS}.linear_fc1": True, f"{EXPERTS}.linear_fc2": True}


def dims(experts: int, units: int) -> dict[str, int]:
    """The sizes that the rules above name, for a layer of ``experts`` with ``units`` feed-forward units each."""
    return {"E": experts, "X": units, "experts": experts}


def arguments(config: Config, experts: int, units: int, pattern: list[bool]) -> dict[str, Any]:
    """The experts as Megatron arguments; ``pattern`` says which layers have them.

    ``norm_topk_prob`` divides the probabilities of the chosen experts by their sum, which is Megatron's softmax over
    the chosen logits alone; without it the softmax is over all experts. How experts are balanced is not stated: it is
    the run's.
    """
    return {
        "num_experts": experts,
        # With a list Megatron stores every layer under a name of its own.
        "moe_layer_freq": 1 if all(pattern) else [int(has_experts) for has_experts in pattern],
        "moe_ffn_hidden_size": units,
        "moe_router_topk": config["num_experts_per_tok"],
        "moe_router_pre_softmax": not config["norm_topk_prob"],
        **neutral("moe_router_score_function", "moe_router_enable_expert_bias", "moe_router_topk_scaling_factor"),
        **neutral("moe_router_num_groups", "moe_router_group_topk", "moe_apply_probs_on_input"),
        **neutral("moe_shared_expert_intermediate_size", "moe_shared_expert_gate", "moe_latent_size"),
    }


def refuse(config: Config, experts: int, pattern: list[bool]) -> str | None:
    """What the two models cannot share, in words that name the field."""
    chosen = config["num_experts_per_tok"]
    if not any(pattern):
        return "no layer has experts (num_experts, decoder_sparse_step, mlp_only_layers)"
    if not 0 < chosen <= experts:
        return f"num_experts_per_tok is {chosen} of {experts} experts"
    if chosen == 1 and config["norm_topk_prob"]:
        return "norm_topk_prob is True with num_experts_per_tok 1, a router whose only weight is always 1"
    return None
