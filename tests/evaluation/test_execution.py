"""Programs of a model: what counts as passed, and what they cannot do by accident."""

import time
from pathlib import Path

import pytest

from megatron_remit.evaluation import execution
from megatron_remit.evaluation.execution import continued, pass_at_1, pass_at_k, passes


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("assert 1 + 1 == 2", True),
        ("from __future__ import annotations\nimport numpy\nassert numpy.ones(2).sum() == 2", True),
        ("assert 1 + 1 == 3", False),
        ("def f(:", False),
        ("exit(0)", False),
        ("import os; os._exit(0)", False),
        ("raise SystemExit", False),
        ("x = '\ud800'", False),
        ("x = '\0'", False),
        ("x = bytearray(2**34)", False),
        ("open('big', 'wb').write(bytes(2**25))", False),
        ("if __name__ == '__main__':\n    raise ValueError", True),
    ],
)
def test_a_program_passes_if_it_reaches_its_end(program, expected):
    assert passes(program) is expected


def test_a_program_that_does_not_end_is_ended_with_what_it_started(monkeypatch, tmp_path):
    monkeypatch.setattr(execution, "SECONDS", 1.5)
    child = f"import time; time.sleep(4); open({str(tmp_path / 'alive')!r}, 'w')"
    start = time.monotonic()
    assert not passes(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\nwhile True: pass")
    assert time.monotonic() - start < 4
    time.sleep(4)
    assert not (tmp_path / "alive").exists()


def test_a_program_sees_neither_this_folder_nor_this_environment(monkeypatch):
    monkeypatch.setenv("A_SECRET", "1")
    assert passes(f"import os\nassert 'A_SECRET' not in os.environ\nassert os.getcwd() != {str(Path.cwd())!r}")


def test_the_metrics_give_what_lm_eval_expects_of_them():
    prompt = "def double(x):\n"
    (answer,) = continued([["    return 2 * x\n"]], [{"prompt": prompt}])
    check = "def check(candidate):\n    assert candidate(2) == 4\ncheck(double)"
    assert pass_at_k([check], [answer], k=[1]) == {"pass@1": 1.0}
    assert pass_at_1([check], [f"{prompt}    return x\n"]) == 0.0
    with pytest.raises(ValueError, match=r"only pass@1"):
        pass_at_k([check], [answer], k=[1, 10])
