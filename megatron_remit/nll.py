"""From final hidden states to per-token NLL: one function for policy and reference.

Passed to ``GPTModel.forward`` as its ``output_processor``, so Megatron's model class stays as it is.

Shape suffixes: S sequence, B microbatch, H hidden, V vocabulary rows of this tensor-parallel rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import mpu
from megatron.training import get_args
from torch import Tensor
from torch.nn import Module

from megatron_remit.data.batch import Batch
from megatron_remit.kernels.chunked_head_logprob import chunked_head_nll
from megatron_remit.kernels.vocab_parallel_logprob import choose_implementation, vocab_parallel_nll


@dataclass(frozen=True)
class Vocabulary:
    """What the NLL is taken over, and how."""

    size: int
    """The tokenizer's number of tokens, without the rows that padding adds for tensor parallelism."""
    cross_entropy_impl: str = "auto"
    """``--cross-entropy-impl``."""


def token_nll(
    *,
    hidden_states: Tensor,
    output_layer: Module,
    output_weight: Tensor | None,
    labels: Tensor | None,
    runtime_gather_output: bool | None,
    context: Vocabulary,
    compute_language_model_loss: Callable[[Tensor, Tensor], Tensor],
    scale_logits: Callable[[Tensor], Tensor],
    **_: object,
) -> Tensor:
    """NLL of the labels, [B, S] in nats, over the logical vocabulary; without labels the logits, [B, S, V].

    Megatron pads the vocabulary so that it divides by the tensor-parallel size. The padding rows are no tokens: they
    take no probability from the others, whatever the padding (a Hugging Face model has none, and the NLL must be the
    same at every TP size).

    The policy's output layer gives its logits, and the backward pass writes their gradient into the same memory: nobody
    else has them. A frozen model (the reference) never has its whole logits; they are made and used in chunks.
    """
    implementation = choose_implementation(context.cross_entropy_impl, hidden_states.device)
    weight = output_layer.weight if output_weight is None else output_weight
    # Only frozen weights are read past the output layer: Megatron's hooks on it bring trained ones up to date.
    chunked = not (torch.is_grad_enabled() or weight.requires_grad)
    if chunked and labels is not None and implementation != "megatron":
        nll_SB = chunked_head_nll(
            hidden_states,
            weight,
            labels.transpose(0, 1),
            context.size,
            output_layer.tp_group,
            implementation,
            output_layer.sequence_parallel,
            scale_logits,
        )
        return nll_SB.transpose(0, 1).contiguous()
    logits_SBV, _bias = output_layer(hidden_states, weight=output_weight, runtime_gather_output=runtime_gather_output)
    logits_SBV = scale_logits(logits_SBV)
    if labels is not None and implementation != "megatron":
        nll_SB = vocab_parallel_nll(
            logits_SBV, labels.transpose(0, 1), context.size, output_layer.tp_group, implementation, in_place=True
        )
        return nll_SB.transpose(0, 1).contiguous()
    logits_SBV = mask_padded_vocabulary(logits_SBV, context.size)
    if labels is None:
        return logits_SBV.transpose(0, 1).contiguous()
    return compute_language_model_loss(labels, logits_SBV)


def mask_padded_vocabulary(logits_SBV: Tensor, vocabulary_size: int) -> Tensor:
    """Set the logits of padding rows to -inf, in place, on the ranks that hold such rows.

    For Megatron's cross-entropy and for callers that want logits: neither knows of the padding.
    """
    rows = logits_SBV.size(-1)
    first_padded = vocabulary_size - mpu.get_tensor_model_parallel_rank() * rows
    if first_padded < rows:
        logits_SBV[..., max(first_padded, 0) :] = float("-inf")
    return logits_SBV


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
