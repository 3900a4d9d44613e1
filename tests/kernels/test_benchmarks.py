"""The programs that compile, check and time the kernels, as far as they go without a GPU."""

import csv

import pytest

from tests.ranks import ROOT, run_command


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def compiled(row):
    return row["kernel"], row["logits"], row["strides"]


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_the_kernels_compile_without_spills_and_with_16_byte_loads(target, tmp_path):
    table = tmp_path / "kernels.csv"
    variants = ["--target", target, "--dtype", "bf16", "--strides", "aligned"]
    run = run_command(["python", ROOT / "benchmarks/compile_kernels.py", *variants, "--csv", table])
    assert run.returncode == 0, run.output
    rows = rows_of(table)
    nll = ["row_statistics", "gradient", "kl_statistics", "kl_gradient"]
    norms = ["cast_first", "mean_square", "scaled", "mean_product", "gradients"]
    names = [f"{name}_kernel" for name in (*nll, *norms, "merge")]
    assert [row["kernel"] for row in rows] == names and {row["target"] for row in rows} == {target}
    for row in rows:
        assert row["spill_store_bytes"] == row["spill_load_bytes"] == row["stack_bytes"] == "0"
        assert int(row["registers"]) <= 64 and int(row["shared_bytes"]) <= 4096
    gradient, kl_gradient = rows[1], rows[3]
    assert all(int(row["loads_16_bytes"]) > 0 for row in rows[:-1])
    assert gradient["other_stores"] == "0", "every store of the gradient is 16 bytes wide"
    assert kl_gradient["other_stores"] == "1", "and of the divergence, but for one number of a segment"
    others = [row["other_stores"] for row in rows[4:-1]]
    assert others == ["1", "1", "0", "1", "0"], "and of the norms, but for one number of a row"
    committed = {
        compiled(row): row for row in rows_of(ROOT / f"benchmarks/results/kernels_{target.replace('_', '')}.csv")
    }
    assert len(committed) == 88
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


def test_the_checks_of_the_norms_run_and_pass():
    run = run_command(["python", ROOT / "benchmarks/check_norm.py", "--device", "cpu"])
    assert run.returncode == 0 and run.output.rstrip().endswith("46 of 46 checks passed"), run.output
