"""The plan's memory against the simulation's, at the paper's widths with fewer layers."""

import json

import pytest

from megatron_remit.launch.gpus import gpu
from megatron_remit.launch.memory import estimate_ranks
from megatron_remit.launch.plan_checks import place
from megatron_remit.simulate.run import simulate_run
from tests.ranks import ROOT

# Shape, layers, and the flags of its script. SmolLM3's fourth layer is without RoPE.
RUNS = {
    "olmo2_1b": (2, "--seq-length 4096 --micro-batch-size 4 --reference-micro-batch-size 8"),
    "smollm3_3b": (4, "--seq-length 8192 --micro-batch-size 1 --reference-micro-batch-size 2"),
    "youtu_llm_2b": (2, "--seq-length 8192 --micro-batch-size 1 --reference-micro-batch-size 2"),
}
COMMON = (
    "--objective remit --global-batch-size 64 --train-iters 10 --lr 1e-4 --bf16 --use-distributed-optimizer "
    "--overlap-grad-reduce --overlap-param-gather --mock-data"
)
GPUS = 8


@pytest.mark.slow
@pytest.mark.parametrize("shape", RUNS)
def test_the_plan_is_within_three_percent_of_the_simulation(shape, tmp_path):
    layers, flags = RUNS[shape]
    config = json.loads((ROOT / "benchmarks/shapes" / shape / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    training = [*COMMON.split(), *flags.split()]
    run = place(tmp_path, tmp_path, GPUS, training)
    microbatches = run.policy.args.global_batch_size // (run.policy.args.micro_batch_size * GPUS)
    (planned,) = estimate_ranks(run.policy, list(run.frozen.values()), microbatches)
    simulated = simulate_run(tmp_path, tmp_path, GPUS, training, gpu("H100-80GB"))["rank 0"]
    assert planned.peak == pytest.approx(simulated["peak"], rel=0.03)
