"""The gate's runs: small models in all kinds of layouts, objectives and modes of scoring."""

from dataclasses import dataclass

from transformers import LlamaConfig, Olmo2Config, Qwen3MoeConfig

SEQUENCE = 64
VOCABULARY = 1024
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32}
CONFIGS = {
    "olmo2": Olmo2Config(**SIZE, architectures=["Olmo2ForCausalLM"]),
    "llama": LlamaConfig(**SIZE | {"num_key_value_heads": 2}, architectures=["LlamaForCausalLM"]),
    "experts": Qwen3MoeConfig(**SIZE, **_EXPERTS, norm_topk_prob=True, architectures=["Qwen3MoeForCausalLM"]),
}
FLAGS = (
    f"--seq-length {SEQUENCE} --micro-batch-size 1 --train-iters 100 --lr 1e-4 --bf16 --mock-data "
    "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
)


@dataclass(frozen=True)
class Case:
    """A run; ``BASE`` and ``STORE`` in its flags stand for folders."""

    objective: str
    model: str
    gpus: int
    flags: str = ""
    ranks: tuple[int, ...] = (0,)
    """The first rank of the first, a middle and the last pipeline stage."""
    waits: tuple[str, ...] = ()
    """Groups of waits (``ALLOWED``) that it may have beside those of every run."""


CASES = {
    "DP2, NTP": Case("ntp", "olmo2", 2, "--global-batch-size 4"),
    "DP2, ReMiT": Case("remit", "olmo2", 2, "--global-batch-size 4", waits=("clock",)),
    "DP2, ReMiT, larger reference microbatches": Case(
        "remit", "olmo2", 2, "--global-batch-size 4 --reference-micro-batch-size 2", waits=("clock",)
    ),
    "DP2, ReMiT, reference in host memory": Case(
        "remit", "olmo2", 2, "--global-batch-size 4 --reference-offload", waits=("clock",)
    ),
    "DP2, ReMiT, document masks": Case(
        "remit", "llama", 2, "--global-batch-size 4 --reset-attention-mask --reset-position-ids", waits=("clock",)
    ),
    "TP2, ReMiT, score store": Case(
        "remit",
        "llama",
        4,
        "--global-batch-size 4 --tensor-model-parallel-size 2 --sequence-parallel --score-store STORE",
        waits=("clock",),
    ),
    "TP2, KD": Case(
        "kd", "llama", 4, "--global-batch-size 4 --tensor-model-parallel-size 2 --sequence-parallel", waits=("clock",)
    ),
    "CP2, two references": Case(
        "contrast",
        "olmo2",
        4,
        "--global-batch-size 4 --context-parallel-size 2 --reference-base-load BASE",
        waits=("clock",),
    ),
    "EP2, ReMiT": Case(
        "remit", "experts", 4, "--global-batch-size 4 --expert-model-parallel-size 2", waits=("clock", "experts")
    ),
    "PP4, RHO-1": Case(
        "rho1",
        "llama",
        4,
        "--global-batch-size 4 --pipeline-model-parallel-size 4",
        ranks=(0, 2, 3),
        waits=("clock", "pipeline"),
    ),
    "TP2 x PP2, virtual stages, ReMiT": Case(
        "remit",
        "olmo2",
        4,
        "--global-batch-size 2 --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2 "
        "--num-layers-per-virtual-pipeline-stage 1",
        ranks=(0, 2),
        waits=("clock", "pipeline"),
    ),
}

ALLOWED = {
    "every run": {
        "megatron/core/rerun_state_machine.py _reduce_any": "whether a rank found a loss that is NaN or infinite",
        "megatron/core/optimizer/clip_grads.py get_grad_norm_fp32": "the norm of the gradients, to clip by",
        "megatron/training/utils/common_utils.py logical_and_across_model_parallel_group": "was the step skipped",
        "megatron/training/utils/common_utils.py reduce_max_stat_across_model_parallel_group": "the norm, for the log",
    },
    "clock": {
        "megatron_remit/scoring/ahead.py reference_seconds": "after the step, when all of it has ended: an event's time"
    },
    "pipeline": {
        "megatron/core/pipeline_parallel/p2p_communication.py _communicate": "Megatron's guard against a race of "
        "batched sends and receives"
    },
    "experts": {"megatron/core/transformer/moe/token_dispatcher.py token_dispatch": "how many tokens each expert gets"},
}
"""Where the host may wait for the GPU in a step, by function, and why. A wait anywhere else fails the gate."""

SIDE_STREAMS = {
    "megatron/core/distributed/distributed_data_parallel.py hook": "Megatron wraps the model on a stream of its own, "
    "so gradients are added there; autograd waits for it"
}
"""Where operators are on another stream than the default one, by function, and why."""
