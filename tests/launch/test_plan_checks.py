"""What cannot run is refused by the plan, in one line that names flag and model: what training would refuse, too."""

import argparse

import pytest
from megatron.training import arguments

from megatron_remit import cpu, patches
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.errors import UserError
from megatron_remit.layout import check_divides
from megatron_remit.specs.native import gpt_config

TP, PP, CP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"
PER_CHUNK, CHUNKS = "--num-layers-per-virtual-pipeline-stage", "--num-virtual-stages-per-pipeline-rank"
FIRST, LAST = "--decoder-first-pipeline-num-layers", "--decoder-last-pipeline-num-layers"


@pytest.mark.parametrize(
    ("flags", "gpus", "message"),
    [
        ((TP, 32), 32, rf"its 16 .* do not divide over {TP} 32"),
        ((PP, 3), 24, rf"base: its 16 layers do not divide over {PP} 3"),
        ((PP, 4, FIRST, 3), 32, rf"base: its 16 layers do not divide over {PP} 4, {FIRST} 3"),
        ((PP, 2, FIRST, 9, LAST, 8), 32, rf"over {PP} 2, {FIRST} 9, {LAST} 8"),
        ((PP, 4, "--account-for-loss-in-pipeline-split"), 32, r"its 16 layers \(and 1 for embedding and loss\) do not"),
        ((PP, 4, PER_CHUNK, 3), 32, rf"over {PP} 4 in chunks of {PER_CHUNK} 3"),
        ((PP, 4, CHUNKS, 3), 32, rf"over {PP} 4 in {CHUNKS} 3 chunks each"),
        ((PP, 2, "--pipeline-model-parallel-layout", "Et*7|t*8L"), 32, "Megatron refuses this: .*decoder layers 15"),
        ((PP, 4, PER_CHUNK, 4, CHUNKS, 2), 32, f"{CHUNKS} 2.*: Megatron refuses this: No more than one of"),
        ((CP, 32, "--seq-length", 4000), 32, rf"--seq-length 4000 does not divide by 2 x {CP} 32"),
        ((TP, 8, "--sequence-parallel", "--seq-length", 4092), 32, rf"4092 \(over {CP} 1\) does not divide by {TP} 8"),
        (("--expert-model-parallel-size", 2), 32, r"--expert-model-parallel-size 2: .*base has no experts"),
        (("--eval-global-batch-size", 100), 32, r"--eval-global-batch-size 100, .*Megatron refuses this"),
        (("--lr", "1e-5", "--min-lr", "1e-4"), 32, r"--min-lr 0.0001, --lr 1e-05: Megatron refuses this"),
        (("--rampup-batch-size", 4, 4, 100), 32, "--rampup-batch-size"),
        (("--overlap-param-gather",), 32, "Megatron refuses this: Must use --overlap-param-gather with"),
        (("--micro-batch-size", 0), 32, "--micro-batch-size 0: expected a number above 0"),
        ((TP, 0), 32, f"{TP} 0: expected a number above 0"),
        (("--objective", "rho1", "--remit-control", "permute"), 32, "--remit-control permute .* the objective is rho1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_flags_that_cannot_run(flags, gpus, message, planned):
    with pytest.raises(UserError, match=message) as refused:
        planned.plan(*flags, gpus=gpus)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("shape", "flags", "message"),
    [
        ({"num_attention_heads": 12, "hidden_size": 1536, "num_key_value_heads": 12}, (TP, 8), "its 12 .* over .* 8"),
        (
            {"num_key_value_heads": 12, "num_attention_heads": 24, "hidden_size": 3072},
            (TP, 8),
            "its 12 groups of query heads do not divide",
        ),
        ({"intermediate_size": 8196}, (TP, 8), "its 8196 feed-forward units do not divide"),
        ({"num_hidden_layers": 18}, (PP, 4), "its 18 layers do not divide over"),
        ({"num_hidden_layers": 20}, (PP, 4, PER_CHUNK, 2), "its 20 layers do not divide over 4 pipeline stages of 2"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize("side", ["base", "rl"])
def test_a_policy_or_reference_that_does_not_divide(side, shape, flags, message, planned):
    name = planned.model("odd", **shape)
    if side == "base" and PER_CHUNK in flags:
        message = f"its 20 layers do not divide over {PP} 4 in chunks of {PER_CHUNK} 2"
    with pytest.raises(UserError, match=rf"^{name}: .*{message}"):
        planned.plan(*flags, **{side: name})


@pytest.mark.parametrize(
    "flags",
    [
        (PP, 4, FIRST, 4, LAST, 2),
        (PP, 2, "--num-layers", 99),  # the checkpoint's number counts
        (PP, 2, "--pipeline-model-parallel-layout", "Et*7|t*9L"),
        (PP, 4, PER_CHUNK, 2),
        (PP, 4, CHUNKS, 2),
        (TP, 8, "--sequence-parallel", CP, 4),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_layouts_that_can_run(flags, planned):
    assert "\npolicy" in "\n" + planned.plan(*flags)


def test_a_reference_of_another_depth_does_not_take_an_uneven_pipeline(planned):
    deep = planned.model("deep", num_hidden_layers=24)
    assert "24 layers" in planned.plan(PP, 2, FIRST, 9, rl=deep)


def parsed(*flags):
    """A small model's arguments as the training program has them before Megatron's validation, for 8 ranks."""
    cpu.install()
    patches.apply()
    parser = add_remit_arguments(arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)), [])
    shape = "--num-layers 6 --hidden-size 64 --num-attention-heads 4 --max-position-embeddings 64 --seq-length 64"
    args = parser.parse_args([*shape.split(), "--micro-batch-size", "1", "--train-iters", "1", *map(str, flags)])
    args.rank, args.world_size, args.padded_vocab_size = 0, 8, 512
    return args


def test_training_refuses_in_the_same_words():
    with pytest.raises(UserError, match=rf"the model: its 4 .* {TP} 8"):
        arguments.validate_args(parsed(TP, 8))
    with pytest.raises(
        UserError, match=r"--hidden-size 65, --num-attention-heads 4: Megatron refuses this: assert args"
    ):
        arguments.validate_args(parsed("--hidden-size", 65))


def test_megatrons_config_refuses_in_one_line():
    args = parsed(TP, 2)
    arguments.validate_args(args)
    args.num_query_groups, args.group_query_attention = 3, True
    with pytest.raises(UserError, match=r"--num-query-groups 3, .*: Megatron refuses this: num_query_groups \(3\)"):
        gpt_config(args)
    with pytest.raises(UserError, match="its 3 groups of query heads"):
        check_divides(args, "the model")
