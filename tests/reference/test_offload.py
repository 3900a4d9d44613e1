"""``--reference-offload`` changes no bit of a run, and between scoring passes the reference has no weights."""

import pytest
import torch

from megatron_remit.argument_checks import check_arguments
from megatron_remit.errors import UserError
from megatron_remit.reference.offload import offload, resident
from tests.ranks import pretrain
from tests.test_bad_input import parsed

LAYOUTS = {
    "one rank": (1, {}),
    "TP2xPP2": (4, {"tensor_model_parallel_size": 2, "sequence_parallel": True, "pipeline_model_parallel_size": 2}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_are_the_same_bits(layout, material):
    ranks, flags = LAYOUTS[layout]
    kept, away = (pretrain(ranks, *material.remit(reference_offload=given, **flags)) for given in (False, True))
    for name in ("lm loss", "remit loss", "grad-norm", "delta mean"):
        assert kept.series(name) == away.series(name)


def test_the_weights_are_there_within_a_pass_only_and_shared_ones_stay_shared():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)).requires_grad_(False)
    model[1].weight = model[0].weight
    before = model[0].weight.clone()
    offload([model])
    assert all(parameter.numel() == 0 for parameter in model.parameters())
    for _ in range(2):
        with resident([model]):
            assert torch.equal(model[1].weight, before) and model[1].weight is model[0].weight
        assert model[0].weight.numel() == 0


def test_a_pass_that_fails_leaves_no_weights_behind():
    model = torch.nn.Linear(3, 5).requires_grad_(False)
    offload([model])
    with pytest.raises(ZeroDivisionError), resident([model]):
        raise ZeroDivisionError
    assert model.weight.numel() == 0 and model.bias.numel() == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"objective": "kd"}, "reads the reference's output layer"),
        ({"objective": "ntp"}, "builds no reference"),
        ({"fp8_format": "e4m3", "reference_fp8": True}, "keeps fp8 copies"),
    ],
)
def test_what_cannot_be_done_is_refused(flags, message, material):
    with pytest.raises(UserError, match=message):
        check_arguments(parsed(material.remit(reference_offload=True, **flags)))
