"""Every flag of the installed Megatron stands in one place of the table, and the program does what the table says."""

import argparse
import ast
import re
import warnings
from itertools import chain
from pathlib import Path

import pytest
from megatron.training import arguments

import megatron_remit
from megatron_remit import cpu
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.errors import UserError
from megatron_remit.megatron_flags import check_megatron_flags, check_not_replaced, given, spelt, table
from tests.ranks import pretrain

cpu.install()

OPTIMIZERS = next(
    action.choices
    for action in arguments.add_megatron_arguments(argparse.ArgumentParser(add_help=False))._actions
    if action.dest == "optimizer"
)
# Megatron's validation makes the values of other flags of these, in the file that the parser is in.
MADE_OTHERS = {
    "use_rotary_position_embeddings": "position_embedding_type",
    "no_weight_decay_cond_type": "apply_wd_to_qk_layernorm",
    "recompute_activations": "recompute_granularity",
    "grad_reduce_in_bf16": "accumulate_allreduce_grads_in_fp32",
}


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
        (
            ["--attention-backend", "local"],
            "--attention-backend local is not supported: .*--transformer-impl",
        ),
        (["--async-save"], "--async-save without --use-persistent-ckpt-worker: .*pass both"),
        (["--non-persistent-ckpt-type", "local"], "--non-persistent-ckpt-type local is not supported: .*pickles"),
        (
            ["--fp8-format", "hybrid", "--transformer-impl", "local"],
            "--fp8-format hybrid with --transformer-impl local",
        ),
        (["--fp4-format", "e2m1", "--transformer-impl", "local"], "--fp4-format e2m1 with --transformer-impl local"),
        (["--qk-clip", "--transformer-impl", "local"], "--qk-clip with --transformer-impl local"),
        (["--log-max-attention-logit", "--transformer-impl", "local"], "--log-max-attention-logit with"),
    ],
)
def test_a_value_that_nothing_here_honours_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        check_megatron_flags(parse(*flags))


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"adam", "sgd"}))
def test_an_optimizer_that_no_test_here_trains_with_is_refused(name):
    with pytest.raises(UserError, match=f"--optimizer {name} is not supported: .*use adam or sgd"):
        check_megatron_flags(parse("--optimizer", name))


def test_a_plain_command_line_is_taken():
    check_megatron_flags(parse("--micro-batch-size", 1, "--optimizer", "sgd", "--dataloader-type", "cyclic"))
    check_megatron_flags(parse("--async-save", "--use-persistent-ckpt-worker"))
    check_megatron_flags(parse("--non-persistent-ckpt-type", "local", "--trust-checkpoint"))
    check_megatron_flags(parse("--fp8-format", "hybrid", "--transformer-impl", "transformer_engine"))


def test_something_reads_every_flag_that_counts_as_honoured():
    """A definition, a docstring or Megatron's parser reads nothing; a checkpoint's value replaces but does not read."""
    megatron = Path(arguments.__file__).parents[1]
    sources = [*megatron.glob("core/**/*.py"), *megatron.glob("training/**/*.py")]
    sources = [file for file in sources if file != Path(arguments.__file__)]
    sources += [file for file in Path(megatron_remit.__file__).parent.glob("**/*.py")]
    read = set().union(*map(names_read, sources))
    honoured = set(chain.from_iterable(table()["honoured"].values()))
    assert sorted(honoured - read - set(MADE_OTHERS)) == [], "flags that nothing reads: refuse them, or list them"
    assert not set(MADE_OTHERS) & read and set(MADE_OTHERS) <= honoured


def names_read(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(file.read_text())
    found, replaced = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "_set_arg":
            replaced |= {*node.args}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in replaced:
            found.add(node.value)
    return found


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
        (["--num-attention-heads", 8], "--num-attention-heads 8 with --use-checkpoint-args: .* has 4, which"),
        (["--num-layers", 2], "--num-layers 2 with --use-checkpoint-args: .* has 4, which"),
        (["--verify-integrity"], "--verify-integrity: .*/release has no integrity.json"),
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
