"""A Transformer Engine that is there but does not load is named in one line, before Megatron trips over it."""

import pytest

from tests.ranks import run_command

BROKEN = {
    "a library of another CUDA": (
        'raise OSError("libtransformer_engine.so: undefined symbol: cublasLtGroupedMatrixLayoutInit_internal")',
        "OSError: libtransformer_engine.so: undefined symbol",
    ),
    "no part for PyTorch": ("", "transformer_engine_torch is not installed"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_training_ends_with_one_line_that_says_so(kind, tmp_path, monkeypatch):
    content, message = BROKEN[kind]
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    run = run_command(["python", "-m", "megatron_remit.pretrain"])
    errors = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert run.returncode == 2 and len(errors) == 1, run.output
    assert message in errors[0] and "constraints-gpu.txt" in errors[0]
    assert "Traceback" not in run.output
