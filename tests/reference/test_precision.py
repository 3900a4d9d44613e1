"""The reference runs in 16 bits whatever the policy, or in fp8 whose scales have no history, and a store says which."""

import pytest
import torch

from megatron_remit import cpu
from megatron_remit.argument_checks import check_arguments
from megatron_remit.errors import UserError
from megatron_remit.reference.checkpoint import reference_arguments
from megatron_remit.scoring.session import expected_identity
from tests.test_bad_input import parsed

cpu.install()


def arguments(material, **flags):
    args = parsed(material.remit(bf16=True, **flags))
    args.remit_tokenizer_fingerprint, args.params_dtype = None, torch.bfloat16
    return args


def test_without_the_flag_nothing_of_the_reference_is_quantized(material):
    own = reference_arguments(arguments(material, fp8_format="hybrid", fp8_param_gather=True))
    assert own.fp8 is None and own.fp4 is None and not own.fp8_param_gather
    args = arguments(material, fp8_format="hybrid")
    assert expected_identity(args)["compute_dtype"] == "bfloat16"


@pytest.mark.parametrize(("given", "used"), [("delayed", "tensorwise"), ("blockwise", "blockwise")])
def test_with_the_flag_scales_have_no_history_and_the_store_says_so(given, used, material):
    args = arguments(material, fp8_format="hybrid", fp8_recipe=given, reference_fp8=True)
    check_arguments(args)
    own = reference_arguments(args)
    assert (own.fp8, own.fp8_recipe, own.fp8_param_gather) == ("hybrid", used, False)
    assert args.fp8_recipe == given, "the policy's stays"
    assert expected_identity(args)["compute_dtype"] == f"bfloat16 with fp8 hybrid {used}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "give --fp8-format"),
        ({"fp8_format": "e4m3", "fp8_recipe": "custom"}, "--fp8-recipe custom.* use one of tensorwise"),
        ({"fp8_format": "e4m3", "objective": "ntp"}, "objective ntp has no reference"),
    ],
)
def test_what_cannot_be_done_is_refused(flags, message, material):
    with pytest.raises(UserError, match=message):
        check_arguments(arguments(material, reference_fp8=True, **flags))
