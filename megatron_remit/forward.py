"""The forward step of policy and reference.

Shape suffixes: B sequences of a microbatch, S sequence positions on this rank.
"""

from collections.abc import Callable, Iterator
from typing import Any

from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args
from torch import Tensor
from torch.nn import Module

from megatron_remit.batch import Batch, get_batch
from megatron_remit.loss import training_loss
from megatron_remit.model import Vocabulary, token_nll
from megatron_remit.score_store.arguments import scores_ahead


def forward_step(
    data_iterator: Iterator[Any] | None, model: Module
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Megatron's forward-step contract for the policy: output tensor and loss function of the next microbatch.

    With a reference the iterator yields microbatches that score-ahead has read already; otherwise it is Megatron's
    own data iterator, whose samples bring the scores along where the run reads them from a store.
    """
    args = get_args()
    if model.training and scores_ahead(args):
        batch: Batch = next(data_iterator)
    else:
        size = args.micro_batch_size if model.training else (args.eval_micro_batch_size or args.micro_batch_size)
        scored = model.training and args.objective != "ntp"
        batch = get_batch(data_iterator, size, get_attr_wrapped_model(model, "vp_stage"), scored)
    return model_nll(batch, model), training_loss(batch)


def model_nll(batch: Batch, model: Module) -> Tensor:
    """Per-token NLL [B, S] in nats on the last pipeline stage, the stage's hidden states elsewhere."""
    args = get_args()
    return model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
        output_processor=token_nll,
        output_processor_context=Vocabulary(args.remit_vocab_size, args.cross_entropy_impl),
    )

