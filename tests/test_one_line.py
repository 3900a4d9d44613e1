"""Megatron's refusals in one line, until the first step, and what is left as it was raised."""

import argparse
import errno
import sys

import pytest
import torch
from megatron.core.optimizer import OptimizerConfig
from megatron.training import ft_integration, global_vars
from megatron.training.arguments import add_megatron_arguments

from megatron_remit import cpu, one_line
from megatron_remit.errors import UserError, cli
from megatron_remit.one_line import begins, in_one_line, until_first_step

cpu.install()


def parsed(*flags):
    return add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)).parse_args(map(str, flags))


def test_an_end_with_status_0_is_an_error_that_names_the_flag():
    args = parsed("--adlr-autoresume")
    with pytest.raises(UserError, match=r"^--adlr-autoresume: Megatron ends here with exit status 0") as caught:
        with in_one_line(args):
            global_vars._set_adlr_autoresume(args)
    assert isinstance(caught.value.__cause__, SystemExit)


def test_an_end_on_a_signal_and_an_end_of_our_own_stay():
    with pytest.raises(SystemExit), in_one_line(parsed()):
        global_vars._graceful_shutdown(15, None)
    with pytest.raises(SystemExit), in_one_line(parsed()):
        raise SystemExit(0)


def test_a_switch_is_named_without_a_value():
    args = parsed("--use-precision-aware-optimizer")
    with pytest.raises(UserError, match=r"^--use-precision-aware-optimizer: Megatron refuses this: .* only supported"):
        with in_one_line(args):
            OptimizerConfig(optimizer="sgd", use_precision_aware_optimizer=True)


def test_a_missing_package_is_said_with_the_flag_that_needs_it(monkeypatch):
    args = parsed("--enable-ft-package")
    monkeypatch.setattr(ft_integration.arguments, "parse_args", lambda **_: args)
    monkeypatch.setitem(sys.modules, "nvidia_resiliency_ext.fault_tolerance", None)
    with pytest.raises(UserError, match=r"^--enable-ft-package: Megatron refuses this: "), in_one_line(args):
        ft_integration.setup()


def test_a_file_is_named_by_the_flag_that_has_it(tmp_path):
    args = parsed("--nccl-communicator-config-path", tmp_path / "nothing", "--save", tmp_path)
    with pytest.raises(UserError, match=f"--nccl-communicator-config-path {tmp_path}/nothing.* No such file"):
        with in_one_line(args):
            (tmp_path / "nothing").read_text()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("peer"),
        TimeoutError("store"),
        OSError(errno.EIO, "Input/output error", "shard"),
        OSError(-2, "Name or service not known"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("NCCL error"),
        KeyError("ours"),
        TypeError("ours"),
    ],
)
def test_what_a_machine_or_this_program_does_wrong_stays(error):
    """A job is retried after the former, and the latter needs its traceback."""
    with pytest.raises(type(error)) as caught, in_one_line(parsed()):
        raise error
    assert caught.value is error


def test_nothing_is_translated_once_the_run_trains(monkeypatch):
    monkeypatch.setattr(one_line, "_trains", False)
    args = parsed()

    def step():
        assert args.seed == 0, "a seed"

    with pytest.raises(UserError, match="Megatron refuses this: a seed") as caught, until_first_step(args):
        step()
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(AssertionError, match="a seed"), until_first_step(args):
        begins(step)()
    with pytest.raises(SystemExit), until_first_step(args):
        raise SystemExit(0)


def test_a_path_that_no_file_system_takes_is_named_by_its_flag(monkeypatch, capsys, tmp_path):
    long = "x" * 300
    monkeypatch.setattr("sys.argv", ["program", "--load", "here", "--out", f"folder/{long}"])
    with pytest.raises(SystemExit) as ended:
        cli(lambda: (tmp_path / long).is_dir())
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --out {'x' * 40}...: a path of ")
