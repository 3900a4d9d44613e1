"""What benchmarks/traffic.py prints: the norms are at most three kernels and twelve bytes a number, sixteen where ranks
share a row, and keep no copies; kd reads the reference's output layer a few times only."""

import re

import pytest

from tests.ranks import ROOT, run_command

ROW = re.compile(r"\| (.+?) \| ([\d,]+) \+ ([\d,]+) \| ([\d.]+)(?: GB)? \+ ([\d.]+)(?: GB)? \| ([\d.]+)")
NORMS = ("weight in fp32", "cast first")


@pytest.fixture(scope="module")
def rows():
    run = run_command(["python", ROOT / "benchmarks/traffic.py"])
    assert run.returncode == 0, run.output
    return {
        name: tuple(float(figure.replace(",", "")) for figure in figures) for name, *figures in ROW.findall(run.output)
    }


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_is_three_kernels_and_twelve_bytes_a_number_at_most(rows, norm):
    kernels, more, forward, backward, kept = rows[norm]
    assert 2 <= kernels + more <= 3 and 8 < forward + backward <= 12 and kept < 0.1
    kernels, more, forward, backward, kept = rows[f"{norm}, plain"]
    assert kernels + more > 20 and forward + backward > 100 and kept > 4


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_over_ranks_reads_its_input_twice_each_way_and_keeps_no_copies(rows, norm):
    kernels, more, forward, backward, kept = rows[f"{norm}, width over TP 2"]
    assert 6 <= forward < 6.2 and 10 <= backward < 10.5 and kept < 0.1
    # Two norms: two passes of each, the ranks' exchange and its division, sums of the weights' gradients.
    assert kernels <= 6 and more <= 10


def test_kd_moves_sixty_gigabytes_a_microbatch_at_most(rows):
    for name, least, most in (("kd", 20, 60), ("kd, plain", 300, 400)):
        _, _, forward, backward, _ = rows[name]
        assert least < forward + backward <= most
