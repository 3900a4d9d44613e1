"""Which failure was the first, what it said, and whether another try can help."""

import errno
import json
import os
import signal
import time

import pytest

from megatron_remit.launch import failures
from megatron_remit.launch.failures import Failure, first_error, hopeless, root_cause, write_failures

TRACEBACK = """0: > setting tensorboard ...
Traceback (most recent call last):
  File "x.py", line 3, in <module>
    step()
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
"""


def failed(line="", status=1, rank=0, node="n1", at=100.0):
    return Failure(rank, node, status, line, at)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (TRACEBACK, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        (TRACEBACK + "Traceback (most recent call last):\nValueError: later", "torch.OutOfMemoryError: CUDA out of"),
        ("note: x\nerror: --lr is missing; give it\n", "error: --lr is missing; give it"),
        ("usage: pretrain.py\npretrain.py: error: unrecognized arguments: --x", "pretrain.py: error: unrecognized"),
        ("[rank3]: Traceback (most recent call last):\n[rank3]:   File\n[rank3]: AssertionError\n", "AssertionError"),
        ("RuntimeWarning: not in a traceback\nall went well\n", ""),
    ],
)
def test_the_first_error_of_a_log(text, line):
    assert first_error(text).startswith(line) and bool(first_error(text)) == bool(line)


def test_a_failure_in_words():
    assert str(failed("ValueError: x", rank=3, node="n2")) == "rank 3 on n2: ValueError: x"
    assert str(failed(status=-9)) == "rank 0 on n1: ended by signal 9 (SIGKILL)"
    assert str(failed("Fatal Python error: Aborted", -6)).endswith("signal 6 (SIGABRT): Fatal Python error: Aborted")
    assert str(failed(status=7, node="")) == "rank 0: exit status 7, without an error line"


def test_the_cause_is_what_failed_first_and_no_echo(tmp_path):
    lost = failed("RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:1", rank=0, at=99.0)
    ended = failed(status=-signal.SIGTERM, rank=1, at=98.0)
    write_failures(tmp_path / "failed-node-0.json", [lost, ended])
    cause = failed("RuntimeError: CUDA error: uncorrectable ECC error encountered", rank=5, node="n2", at=101.0)
    write_failures(tmp_path / "failed-node-1.json", [cause, failed("ValueError: x", rank=6, node="n2", at=102.0)])
    (tmp_path / "failed-node-2.json").write_text('[{"rank": 1')
    assert root_cause(tmp_path) == cause
    assert root_cause(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("cause", "stepped", "why"),
    [
        # Of the input: at once, whenever it is seen.
        (failed("error: corpus/x.bin: no such file", status=2), False, "an error of its flags or files"),
        (failed("error: sample 7: not a token", status=2), True, "an error of its flags or files"),
        (failed("AssertionError: heads must divide"), False, "it failed before its first step"),
        (failed("OSError: [Errno 28] No space left on device"), True, "no space in"),
        # Of the machine, or of a run that has been going on.
        (failed("torch.OutOfMemoryError: CUDA out of memory"), False, ""),
        (failed("RuntimeError: CUDA error: uncorrectable ECC error encountered"), False, ""),
        (failed("torch.distributed.DistBackendError: NCCL error in: x.cpp"), False, ""),
        (failed(status=-9), False, ""),
        (None, False, ""),
        (failed("AssertionError: heads must divide"), True, ""),
    ],
)
def test_when_another_try_cannot_help(cause, stepped, why, tmp_path):
    assert hopeless(cause, stepped, tmp_path).startswith(why) and bool(hopeless(cause, stepped, tmp_path)) == bool(why)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_seen_even_if_no_log_could_say_so(number, monkeypatch, tmp_path):
    assert not failures.disk_is_full(tmp_path) and list(tmp_path.iterdir()) == []

    def full(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    assert hopeless(failed(), True, tmp_path).startswith(f"no space in {tmp_path}")
    assert hopeless(None, False, tmp_path).startswith(f"no space in {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_is_no_second_failure(tmp_path):
    write_failures(tmp_path / "nowhere/failed-node-0.json", [failed(at=time.time())])
    write_failures(tmp_path / "failed-node-0.json", [failed()])
    assert json.loads((tmp_path / "failed-node-0.json").read_text())[0]["node"] == "n1"
