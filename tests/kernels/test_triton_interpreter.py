"""The Triton kernels on the CPU, under Triton's interpreter."""

import pytest

from tests.ranks import run_command

NAMES = ("interpreted", "interpreted_kl", "interpreted_rms", "interpreted_rms_parts")
FILES = tuple(f"tests/kernels/{name}.py" for name in NAMES)


@pytest.mark.slow
def test_the_triton_kernels_agree_with_float64_under_the_interpreter(monkeypatch):
    """One process for the cases of all files: Triton reads TRITON_INTERPRET when it is imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run = run_command(["python", "-m", "pytest", "-p", "no:cacheprovider", *FILES])
    assert run.returncode == 0, run.output
    assert "passed" in run.output and "skipped" not in run.output
