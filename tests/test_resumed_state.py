"""What a resumed run is to take up is in its checkpoint and fits its flags, or is named."""

import pytest

from megatron_remit.errors import UserError
from megatron_remit.programs.resume import check_layout, check_state
from tests.test_bad_input import parsed

LAYOUTS = [
    ("tensor_model_parallel_size", 2, "--tensor-model-parallel-size 2, but the run in --load run was saved with .* 1:"),
    ("pipeline_model_parallel_size", 4, "--pipeline-model-parallel-size 4, but .* 2:"),
    ("expert_model_parallel_size", 2, "--expert-model-parallel-size 2, but .* 1:"),
    ("expert_tensor_parallel_size", 2, "--expert-tensor-parallel-size 2, but .* None:"),
    (
        "virtual_pipeline_model_parallel_size",
        3,
        "3 model chunks .* but .* 1 model chunks",
    ),
    ("pipeline_model_parallel_layout", "Ett|ttL", r"--pipeline-model-parallel-layout Ett\|ttL, but .* None:"),
    ("decoder_first_pipeline_num_layers", 1, "--decoder-first-pipeline-num-layers 1, but .* None:"),
    ("decoder_last_pipeline_num_layers", 1, "--decoder-last-pipeline-num-layers 1, but .* None:"),
    ("account_for_embedding_in_pipeline_split", True, "--account-for-embedding-in-pipeline-split True, but .* False:"),
    ("account_for_loss_in_pipeline_split", True, "--account-for-loss-in-pipeline-split True, but .* False:"),
]


@pytest.mark.parametrize(("name", "value", "message"), LAYOUTS, ids=[name for name, *_ in LAYOUTS])
def test_each_change_of_the_model_layout_is_named(name, value, message):
    """In either direction; and none of them matters without the distributed optimizer."""
    flags = ["--pipeline-model-parallel-size", 2]
    before, now = parsed([*flags, "--use-distributed-optimizer"]), parsed([*flags, "--use-distributed-optimizer"])
    check_layout(now, before, "--load run")
    setattr(now, name, value)
    with pytest.raises(UserError, match=message):
        check_layout(now, before, "--load run")
    with pytest.raises(UserError, match="was saved with"):
        check_layout(before, now, "--load run")
    now.use_distributed_optimizer = False
    check_layout(now, before, "--load run")


def test_a_state_that_was_not_saved_is_named():
    """Megatron ends with a KeyError without the optimizer's, and with exit status 0 without the random numbers'."""
    for flag, advice in (
        ("--no-save-optim", "pass --no-load-optim --no-load-rng to go on with a fresh one"),
        ("--no-save-rng", "pass --no-load-rng to go on with fresh ones"),
    ):
        earlier = parsed(["--lr-decay-iters", 4, flag])
        with pytest.raises(UserError, match=f"--load run: was saved with {flag}, so .*; {advice}"):
            check_state(parsed(["--load", "run", "--lr-decay-iters", 4]), earlier)
        fresh = advice.removeprefix("pass ").split(" to go on")[0].split()
        check_state(parsed(["--load", "run", "--lr-decay-iters", 4, *fresh]), earlier)
