"""Loss functions that Megatron's schedules call on the last pipeline stage.

Each returns ``(sum of the loss over this rank's tokens, number of tokens, report)``: Megatron divides by the token
count of the global batch (``--calculate-per-token-loss``), so the divisor of equation 6 is the number of tokens and
never the sum of the weights; RHO-1 counts the tokens that it keeps. A report value is a pair (sum, tokens), which
Megatron's ``train_step`` adds up over microbatches and data-parallel ranks before it divides.

Shape suffixes: B microbatch, S sequence positions on this rank.
"""

from functools import partial

import torch
from megatron.core import mpu
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.training import get_args
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_remit.objectives.math.permutation import permute_weights
from megatron_remit.objectives.math.weights import remit_weights

SPIKY_LOSS_FACTOR = 10

LossResult = tuple[Tensor, Tensor, dict[str, Tensor]]


def ntp_loss(mask_BS: Tensor, nll_BS: Tensor) -> LossResult:
    """Next-token prediction (equation 2): the sum of the unmasked NLLs, in nats."""
    mask_N = mask_BS.reshape(-1).float()
    loss = (nll_BS.reshape(-1).float() * mask_N).sum()
    num_tokens = mask_N.sum().detach().to(torch.int)
    check_loss(loss)
    return loss, num_tokens, {"lm loss": pair(loss, num_tokens)}


def remit_loss(
    mask_BS: Tensor,
    reference_nll_BS: Tensor,
    nll_BS: Tensor,
    sample_B: Tensor,
    document_ids_BS: Tensor | None = None,
) -> LossResult:
    """ReMiT (equation 6): the sum of ``w_t * NLL_t`` over unmasked tokens, with the unweighted NTP loss beside it.

    ``sample_B`` numbers the sequences in the run; the control with permuted weights draws by it.
    ``document_ids_BS`` (``objectives/documents.py``) is needed by ``--remit-centering document`` only.

    The report adds the weight's first two moments; :mod:`megatron_remit.step_metrics` turns them into its standard
    deviation after the reduction over ranks.
    """
    args = get_args()
    mask_BS = mask_BS.float()
    nll_BS = nll_BS.float()
    weights = remit_weights(
        nll_BS.detach(),
        reference_nll_BS,
        mask_BS,
        args.remit_epsilon,
        args.remit_centering,
        cp_group(),
        document_ids_BS,
    )
    mask_N = mask_BS.reshape(-1)
    num_tokens = mask_N.sum().detach().to(torch.int)
    weight_BS = weights.weight_BS
    if args.remit_control == "permute":
        weight_BS = permute_weights(weight_BS, mask_BS, sample_B, args.seed, cp_group())
    # Flattened before the product, as in `ntp_loss`, so that weights equal to 1 sum to the same bits.
    weighted_nll_N = nll_BS.reshape(-1) * weight_BS.reshape(-1)
    loss = (weighted_nll_N * mask_N).sum()
    check_loss(loss)
    summed = {
        "lm loss": nll_BS.detach(),
        "reference nll": reference_nll_BS,
        "delta mean": weights.delta_BS,
        "weight mean": weight_BS,
        "weight square": weight_BS.square(),
        "clipped low": weights.clipped_low_BS,
        "clipped high": weights.clipped_high_BS,
    }
    report = {name: pair((value_BS.reshape(-1) * mask_N).sum(), num_tokens) for name, value_BS in summed.items()}
    report["remit loss"] = pair(loss, num_tokens)
    return loss, num_tokens, report


def cp_group() -> ProcessGroup | None:
    """The ranks that hold the other parts of this rank's sequences; None where sequences are whole."""
    return mpu.get_context_parallel_group() if get_args().context_parallel_size > 1 else None


def pair(total: Tensor, num_tokens: Tensor) -> Tensor:
    """A report value: what ``train_step`` adds up and divides."""
    return torch.stack([total.detach().float(), num_tokens.float()])


def check_loss(loss: Tensor) -> None:
    """Hand the loss to Megatron's rerun state machine: it stops on NaN and infinity, and reports spikes when asked."""
    args = get_args()
    machine = get_rerun_state_machine()
    if args.check_for_nan_in_loss_and_grad:
        for kind, rejection in (("NaN", torch.isnan), ("Inf", torch.isinf)):
            machine.validate_result(
                result=loss,
                rejection_func=rejection,
                message=f"found {kind} in the local forward loss",
                tolerance=0.0,
                fatal=True,
            )
    if args.check_for_spiky_loss:
        machine.validate_result(
            result=loss,
            rejection_func=partial(machine.is_unexpectedly_large, threshold=SPIKY_LOSS_FACTOR, context="loss"),
            message="Spiky loss",
            tolerance=0.0,
            fatal=False,
        )
