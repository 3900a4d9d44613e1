"""Every flag of the installed Megatron stands in one place of the table, and the program does what the table says."""

import argparse
import re
from itertools import chain

import pytest
from megatron.training import arguments

from megatron_remit import cpu
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.errors import UserError
from megatron_remit.megatron_flags import check_megatron_flags, check_not_replaced, given, spelt, table
from tests.ranks import pretrain

cpu.install()


def parse(*flags):
    words = [*map(str, flags)]
    parser = add_remit_arguments(arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)), words)
    return parser.parse_args(words)


def listed():
    """The names of the table, each as often as it stands there."""
    rows = [*table()["refused"], *table()["harmless"]]
    return [*chain.from_iterable(row["flags"] for row in rows), *chain.from_iterable(table()["honoured"].values())]


def test_every_flag_of_the_installed_megatron_stands_in_the_table_once():
    parser = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False, add_help=False))
    names = {action.dest for action in parser._actions}
    assert sorted(names - set(listed())) == [], "flags that are new in Megatron: give each a place in the table"
    assert sorted(set(listed()) - names) == [], "flags that Megatron no longer has"
    assert len(listed()) == len(set(listed()))


def test_no_flag_of_this_program_has_a_name_of_megatrons():
    parser = add_remit_arguments(argparse.ArgumentParser(allow_abbrev=False, add_help=False), [])
    assert not {action.dest for action in parser._actions} & set(listed())


@pytest.mark.parametrize("name", [name for row in table()["refused"] for name in row["flags"]])
def test_a_refused_flag_is_refused_by_name_with_the_reason(name):
    args = parse()
    default = getattr(args, name)
    setattr(args, name, True if default is False else "something")
    with pytest.raises(UserError, match=f"^{spelt(name)}.* is not supported: "):
        check_megatron_flags(args)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ckpt-format", "torch"], "--ckpt-format torch is not supported"),
        (["--dataloader-type", "external"], "use 'single' or 'cyclic'"),
        (["--optimizer", "muon"], "--optimizer muon needs .*emerging-optimizers"),
        (["--qk-clip", "--transformer-impl", "local"], "--qk-clip with --transformer-impl local"),
        (["--log-max-attention-logit", "--transformer-impl", "local"], "--log-max-attention-logit with"),
    ],
)
def test_a_value_that_nothing_here_honours_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        check_megatron_flags(parse(*flags))


def test_a_plain_command_line_is_taken():
    check_megatron_flags(parse("--micro-batch-size", 1, "--optimizer", "sgd", "--dataloader-type", "cyclic"))


def test_only_what_the_command_line_has_counts_as_given():
    words = [
        "--objective",
        "remit",
        "--lr",
        "1e-3",
        "--no-rope-fusion",
        "--window-size",
        "127,0",
        "--reference-load",
        "x",
    ]
    assert given(words) == {"lr": 1e-3, "apply_rope_fusion": False, "window_size": (127, 0)}


def test_a_flag_that_the_checkpoint_replaced_is_refused_with_both_values():
    args, saved = argparse.Namespace(load="import", window_size=[63, 0], lr=1.0), argparse.Namespace()
    check_not_replaced(args, {"window_size": (63, 0), "lr": 1.0}, saved)
    with pytest.raises(UserError, match=r"--window-size \(127, 0\) with --use-checkpoint-args: .*import has \[63, 0\]"):
        check_not_replaced(args, {"window_size": (127, 0)}, saved)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sft"], "--sft is not supported"),
        (["--multi-latent-attention"], "--multi-latent-attention True with --use-checkpoint-args"),
        (["--window-size", "7,0"], r"--window-size \(7, 0\) with --use-checkpoint-args"),
        (["--yaml-cfg", "x.yaml"], "--yaml-cfg x.yaml is not supported"),
        (["--yaml-cfg=x.yaml"], "--yaml-cfg x.yaml is not supported"),
    ],
)
def test_training_refuses_such_a_flag_in_one_line(material, tmp_path, flags, message):
    run = pretrain(1, *material.flags(), *flags, check=False)
    assert run.returncode == 2, run.output
    assert [line for line in run.output.splitlines() if line.startswith("error: ")], run.output
    assert "Traceback" not in run.output
    assert re.search(message, run.output), run.output


def test_dropout_over_an_import_is_the_runs_own_choice(material):
    plain = pretrain(1, *material.flags())
    dropped = pretrain(1, *material.flags(), "--hidden-dropout", 0.5)
    assert plain.series("lm loss")[0] != dropped.series("lm loss")[0]
