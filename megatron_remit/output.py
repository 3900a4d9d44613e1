"""What a pass over the model gives on the last pipeline stage: an ``output_processor`` with its context.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.training import get_args
from torch import Tensor
from torch.nn import Module

from megatron_remit.batch import Batch
from megatron_remit.model import Vocabulary, token_nll


@dataclass(frozen=True)
class Output:
    """How the last pipeline stage ends: ``GPTModel.forward``'s ``output_processor`` and its context."""

    processor: Callable[..., Tensor]
    context: Any
    kept_dtype: torch.dtype = torch.float32
    """What the values are kept in after a pass without gradients. Megatron's wrapper for 16-bit models gives fp32."""


def nll_output() -> Output:
    """Per-token NLL [B, S] in nats: one function for policy and reference."""
    args = get_args()
    return Output(token_nll, Vocabulary(args.remit_vocab_size, args.cross_entropy_impl))


def run_model(batch: Batch, model: Module, output: Output) -> Tensor:
    """``output`` of the microbatch on the last pipeline stage, the stage's hidden states elsewhere."""
    return model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
        output_processor=output.processor,
        output_processor_context=output.context,
    )
