"""From final hidden states to per-token NLL: one function for policy and reference.

Passed to ``GPTModel.forward`` as its ``output_processor``, so Megatron's model class stays as it is.

Shape suffixes: S sequence, B microbatch, H hidden, V vocabulary rows of this tensor-parallel rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

from megatron.core import mpu
from torch import Tensor
from torch.nn import Module


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer's number of tokens, without the rows that padding adds for tensor parallelism."""

    size: int


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

    Megatron pads the vocabulary so that it divides by the tensor-parallel size. The padding rows are no tokens: their
    logits are set to -inf, so they take no probability from the others, whatever the padding (a Hugging Face model
    has none, and the NLL must be the same at every TP size).
    """
    logits_SBV, _bias = output_layer(hidden_states, weight=output_weight, runtime_gather_output=runtime_gather_output)
    logits_SBV = mask_padded_vocabulary(scale_logits(logits_SBV), context.size)
    if labels is None:
        return logits_SBV.transpose(0, 1).contiguous()
    return compute_language_model_loss(labels, logits_SBV)


def mask_padded_vocabulary(logits_SBV: Tensor, vocabulary_size: int) -> Tensor:
    """Set the logits of padding rows to -inf, in place, on the ranks that hold such rows."""
    rows = logits_SBV.size(-1)
    first_padded = vocabulary_size - mpu.get_tensor_model_parallel_rank() * rows
    if first_padded < rows:
        logits_SBV[..., max(first_padded, 0) :] = float("-inf")
    return logits_SBV
