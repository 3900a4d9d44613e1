"""Experts on fake tensors: which tokens they get depends on values, so here each gets an equal share.

Megatron's dispatcher copies the counts of tokens to the host and waits for them; the stand-in writes the wait down, and
returns the counts of a perfectly balanced router.
"""

from typing import Any

import numpy
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

from megatron_remit.simulate.ledger import Ledger


def install(ledger: Ledger) -> None:
    """Let Megatron's all-to-all dispatcher route evenly. The other one makes shapes from values, which stays an
    error: plan those runs with ``--moe-token-dispatcher-type alltoall``."""

    def dtoh_and_synchronize(self: Any, point: str, tokens_per_expert: Any = None) -> Any:
        if point == self.cuda_dtoh_point:
            tokens_per_expert = _route_evenly(self)
        if point == self.cuda_sync_point:
            ledger.wait()
        return tokens_per_expert

    MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize = dtoh_and_synchronize


def _route_evenly(dispatcher: Any) -> numpy.ndarray:
    """Set the counts that the dispatcher has on the host; the result is the tokens of each of this rank's experts."""
    experts, tp_size, ep_size = dispatcher.num_experts, dispatcher.tp_size, dispatcher.ep_size
    chosen = dispatcher.routing_map.size(0) * dispatcher.config.moe_router_topk
    of_expert = numpy.full(experts, chosen // experts)
    of_expert[: chosen % experts] += 1
    own = of_expert[dispatcher.local_expert_indices]
    dispatcher.num_out_tokens = chosen
    if tp_size * ep_size > 1:
        dispatcher.input_splits = of_expert.reshape(ep_size, -1).sum(axis=1)
        dispatcher.output_splits = numpy.full(ep_size, own.sum())
        dispatcher.output_splits_tp = numpy.full(tp_size, own.sum() * ep_size)
    dispatcher.num_global_tokens_per_local_expert = numpy.tile(own, (tp_size * ep_size, 1))
    return own * tp_size * ep_size
