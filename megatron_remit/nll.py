"""From final hidden states to the NLL per token: one function for policy and reference.

What happens at the end of a model is passed to ``GPTModel.forward`` as its ``output_processor``, so Megatron's model
class stays as it is.

Shape suffixes: S sequence positions on this rank, B sequences of a microbatch, V vocabulary rows of this
tensor-parallel rank.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from megatron.core import mpu
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import Module

from megatron_remit.data.batch import Batch, attention_mask_of
from megatron_remit.data.packed import packed_columns
from megatron_remit.kernels.chunked_head_logprob import chunked_head_nll
from megatron_remit.kernels.vocab_parallel_logprob import choose_implementation, vocab_parallel_nll


@dataclass(frozen=True)
class Vocabulary:
    """What the NLL is taken over, and how."""

    size: int
    """The number of tokens, without the rows that padding adds for tensor parallelism; rows beyond it take no
    probability."""
    cross_entropy_impl: str = "auto"
    """``--cross-entropy-impl``."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Vocabulary":
        """The policy's: every row of its own embedding, whatever the reference has, so that losses compare between
        objectives and references."""
        return cls(args.remit_vocab_size, args.cross_entropy_impl)

    @classmethod
    def of_reference(cls, args: argparse.Namespace) -> "Vocabulary":
        """The reference's: the rows that the policy has too. Its other rows are no tokens of this run (an embedding
        that was resized to a multiple of 64 has some) and must not take probability from those that are."""
        common = getattr(args, "remit_common_vocab_size", None)
        return cls(args.remit_vocab_size if common is None else common, args.cross_entropy_impl)


@dataclass(frozen=True)
class Output:
    """How the last pipeline stage ends: ``GPTModel.forward``'s ``output_processor`` and its context."""

    processor: Callable[..., Tensor]
    context: Any
    stored_dtype: torch.dtype = torch.float32
    """In which the values are stored after a pass without gradients. Megatron's wrapper of 16-bit models gives fp32."""


@dataclass(frozen=True)
class Head:
    """A model's last step, as ``GPTModel`` hands it to an ``output_processor``."""

    hidden_states: Tensor
    output_layer: Any
    """Megatron's ``ColumnParallelLinear``."""
    output_weight: Tensor | None
    """The embedding, where the two are tied."""
    runtime_gather_output: bool | None
    scale_logits: Callable[[Tensor], Tensor]
    """Megatron's factor on the logits under muP."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Head":
        """From the keyword arguments of an ``output_processor``."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    @property
    def weight(self) -> Tensor:
        """This rank's rows of the output weight, [V, hidden]."""
        return self.output_layer.weight if self.output_weight is None else self.output_weight

    @property
    def tp_group(self) -> ProcessGroup:
        """The ranks that share the vocabulary."""
        return self.output_layer.tp_group

    def logits(self) -> Tensor:
        """Logits [S, B, V] with gradients."""
        logits_SBV, _bias = self.output_layer(
            self.hidden_states, weight=self.output_weight, runtime_gather_output=self.runtime_gather_output
        )
        return self.scale_logits(logits_SBV)


def nll_output(vocabulary: Vocabulary) -> Output:
    """NLL per token [B, S] in nats."""
    return Output(token_nll, vocabulary)


def token_nll(
    *,
    labels: Tensor | None,
    context: Vocabulary,
    compute_language_model_loss: Callable[[Tensor, Tensor], Tensor],
    **rest: Any,
) -> Tensor:
    """An ``output_processor``: NLL of the labels, [B, S] in nats, over the logical vocabulary; without labels the
    logits, [B, S, V].

    A frozen model (the reference) never has its whole logits; they are made and used in chunks.
    """
    head = Head.of(rest)
    implementation = choose_implementation(context.cross_entropy_impl, head.hidden_states.device)
    # Only frozen weights are read past the output layer: Megatron's hooks on it bring trained ones up to date.
    chunked = not (torch.is_grad_enabled() or head.weight.requires_grad)
    if chunked and labels is not None and implementation != "megatron":
        nll_SB = chunked_head_nll(
            head.hidden_states,
            head.weight,
            labels.transpose(0, 1),
            context.size,
            head.tp_group,
            implementation,
            head.output_layer.sequence_parallel,
            head.scale_logits,
        )
        return nll_SB.transpose(0, 1).contiguous()
    logits_SBV = head.logits()
    if labels is None:
        return mask_padded_vocabulary(logits_SBV, context.size).transpose(0, 1).contiguous()
    return nll_from_logits(logits_SBV, labels, context, head.tp_group, compute_language_model_loss)


def nll_from_logits(
    logits_SBV: Tensor,
    labels_BS: Tensor,
    vocabulary: Vocabulary,
    tp_group: ProcessGroup,
    compute_language_model_loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """NLL of the labels, [B, S] in nats, over the logical vocabulary.

    Megatron pads the vocabulary so that it divides by the tensor-parallel size. The padding rows are no tokens: they
    take no probability from the others, whatever the padding (a Hugging Face model has none, and the NLL must be the
    same at every TP size).

    The backward pass writes the gradient into the memory of ``logits_SBV``: the caller must not use them afterwards.
    """
    implementation = choose_implementation(vocabulary.cross_entropy_impl, logits_SBV.device)
    if implementation == "megatron":
        return compute_language_model_loss(labels_BS, mask_padded_vocabulary(logits_SBV, vocabulary.size))
    nll_SB = vocab_parallel_nll(
        logits_SBV, labels_BS.transpose(0, 1), vocabulary.size, tp_group, implementation, in_place=True
    )
    return nll_SB.transpose(0, 1).contiguous()


def mask_padded_vocabulary(logits_SBV: Tensor, vocabulary_size: int) -> Tensor:
    """Set the logits of padding rows to -inf, in place, on the ranks that hold such rows.

    For Megatron's cross-entropy and for callers that want logits: neither knows of the padding.
    """
    rows = logits_SBV.size(-1)
    first_padded = vocabulary_size - mpu.get_tensor_model_parallel_rank() * rows
    if first_padded < rows:
        logits_SBV[..., max(first_padded, 0) :] = float("-inf")
    return logits_SBV


def run_model(batch: Batch, model: Module, output: Output) -> Tensor:
    """``output`` of the microbatch on the last pipeline stage, the stage's hidden states elsewhere."""
    columns, documents = packed_columns(batch)
    result = model(
        columns["tokens"],
        columns["position_ids"],
        attention_mask_of(batch),
        labels=columns["labels"],
        loss_mask=columns["loss_mask"],
        packed_seq_params=documents,
        output_processor=output.processor,
        output_processor_context=output.context,
    )
    if documents is not None and batch["labels"] is not None and len(batch["labels"]) > 1:
        result = result.view_as(batch["labels"])  # the NLLs of one long sequence
    return result
