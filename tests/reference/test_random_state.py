"""Building the reference leaves the random states of the run as they were."""

import pytest
import torch
from megatron.core import tensor_parallel

from megatron_remit import cpu
from megatron_remit.reference.model import _random_state_kept

cpu.install()


def generator(seed):
    made = torch.Generator()
    made.manual_seed(seed)
    return made


@pytest.mark.parametrize("kind", ["state", "generator"])
def test_a_trackers_states_are_the_same_afterwards(kind):
    """``--te-rng-tracker`` keeps torch.Generator objects where Megatron's tracker keeps tensors."""
    tracker = tensor_parallel.get_cuda_rng_tracker()
    before = tracker.get_states()
    own = generator(3)
    expected = torch.rand(4, generator=generator(3))
    tracker.set_states({"model": own if kind == "generator" else own.get_state()})
    try:
        with _random_state_kept():
            if kind == "generator":
                torch.rand(7, generator=own)
            else:
                tracker.get_states()["model"].fill_(0)
        kept = tracker.get_states()["model"]
        if kind == "state":
            own.set_state(kept)
            kept = own
        assert torch.equal(torch.rand(4, generator=kept), expected)
    finally:
        tracker.set_states(before)
