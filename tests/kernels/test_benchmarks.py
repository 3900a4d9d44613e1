"""The programs that compile, check and time the kernels, as far as they go without a GPU."""

import csv

import pytest

from tests.ranks import ROOT, run_command


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def compiled(row):
    return row["kernel"], row["logits"], row["strides"]


def test_the_kernels_compile_for_sm_90_without_spills_and_with_16_byte_loads(tmp_path):
    table = tmp_path / "kernels.csv"
    run = run_command(
        ["python", ROOT / "benchmarks/compile_kernels.py", "--dtype", "bf16", "--strides", "aligned", "--csv", table]
    )
    assert run.returncode == 0, run.output
    rows = rows_of(table)
    names = ["row_statistics_kernel", "gradient_kernel", "kl_statistics_kernel", "kl_gradient_kernel", "merge_kernel"]
    assert [row["kernel"] for row in rows] == names
    for row in rows:
        assert row["spill_store_bytes"] == row["spill_load_bytes"] == row["stack_bytes"] == "0"
        assert int(row["registers"]) <= 64 and int(row["shared_bytes"]) <= 1024
    statistics, gradient, kl_statistics, kl_gradient, _ = rows
    assert all(int(row["loads_16_bytes"]) > 0 for row in (statistics, gradient, kl_statistics, kl_gradient))
    assert gradient["other_stores"] == "0", "every store of the gradient is 16 bytes wide"
    assert kl_gradient["other_stores"] == "1", "and of the divergence, but for one number of a segment"
    committed = {compiled(row): row for row in rows_of(ROOT / "benchmarks/results/kernels_sm90.csv")}
    assert len(committed) == 43
    if committed[compiled(gradient)]["triton"] == gradient["triton"]:
        for row in rows:
            assert committed[compiled(row)]["registers"] == row["registers"], "the committed table is out of date"


@pytest.mark.slow
def test_the_comparison_with_other_cross_entropies_runs(tmp_path):
    table = tmp_path / "logprob.csv"
    sizes = ["--rows", "16", "--vocabulary", "300", "--hidden", "16", "--repeats", "2"]
    run = run_command(["python", ROOT / "benchmarks/logprob.py", "--device", "cpu", *sizes, "--csv", table])
    assert run.returncode == 0, run.output
    rows = rows_of(table)
    assert not [row for row in rows if row["error"]]
    for task in ("forward", "forward and backward"):
        assert {"ours", "megatron", "megatron fused", "torch eager"} <= {
            row["name"] for row in rows if row["task"] == task
        }
    assert {"chunked head", "bare matrix product"} <= {row["name"] for row in rows if row["task"] == "head"}
    assert all(float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"]) for row in rows)
