"""What a run costs: floating-point operations, tokens per second, GPU-hours, and disk for its checkpoints.

Operations are those of the model alone (as in Chowdhery et al. 2022, arXiv:2204.02311, appendix B): recomputation is
not counted, and of causal attention only the half that is used.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_remit.launch.gpus import Gpu
from megatron_remit.launch.parameters import Model

DEFAULT_MFU = 0.4


@dataclass(frozen=True)
class Compute:
    """Floating-point operations per token."""

    matrices: float
    """The policy's, forward and backward: 6 for each parameter that a token meets."""
    attention: float
    """The policy's products of queries and keys, and of their weights and values, forward and backward."""
    reference: float
    """The forward passes of the frozen models: 2 for each parameter, and their attention."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.matrices + self.attention + self.reference

    def tokens_per_second(self, gpu: Gpu, utilization: float) -> float:
        """Tokens per second of one GPU that reaches the share ``utilization`` of its peak."""
        return gpu.peak * utilization / self.total


def compute(
    policy: argparse.Namespace, model: Model, references: Sequence[tuple[argparse.Namespace, Model]]
) -> Compute:
    """What each token of training costs; ``references`` are the frozen models that the run runs."""
    return Compute(
        6 * model.active,
        3 * _attention_forward(policy),
        sum(2 * frozen.active + _attention_forward(args) for args, frozen in references),
    )


def _attention_forward(args: argparse.Namespace) -> float:
    """Per token: on average it looks at half of the sequence, 2 operations for each number of a key and of a value.

    Sliding windows and document masks are not counted: with them it is less.
    """
    keys, values = args.kv_channels, args.kv_channels
    if args.multi_latent_attention:
        keys, values = args.qk_head_dim + args.qk_pos_emb_head_dim, args.v_head_dim
    return args.num_layers * args.num_attention_heads * (keys + values) * args.seq_length


@dataclass(frozen=True)
class Disk:
    """Bytes in the folder of ``--save``."""

    checkpoint: int
    """One checkpoint: weights, and unless --no-save-optim the fp32 weights and two moments of Adam."""
    kept: int
    """Checkpoints that are there at the same time."""
    free: int | None
    """Free bytes of the file system; None if it is not known."""

    @property
    def total(self) -> int:
        """All of them together."""
        return self.checkpoint * self.kept


def disk(args: argparse.Namespace, model: Model, steps: int) -> Disk | None:
    """What the checkpoints of ``steps`` steps take; None if the run saves none."""
    if args.save is None or not args.save_interval:
        return None
    half = args.bf16 or args.fp16
    per_parameter = 2 if half else 4
    if not args.no_save_optim:
        per_parameter += 12 if half else 8
    # Megatron saves once more at the end. With --save-retain-interval an older one goes when the newest stands.
    kept = -(-steps // args.save_interval)
    if args.save_retain_interval:
        kept = min(kept, steps // args.save_retain_interval + args.save_keep_last + 1)
    return Disk(per_parameter * model.parameters, kept, _free(Path(args.save)))


def _free(folder: Path) -> int | None:
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None
