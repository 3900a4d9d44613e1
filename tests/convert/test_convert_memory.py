"""A conversion needs memory for its largest tensor and one shard, not for the model."""

import json

from tests.ranks import run_command


def test_import_and_export_hold_one_tensor_and_one_shard():
    shape = ["--layers", 20, "--vocabulary", 24064, "--shard-bytes", 32_000_000, "--repeats", 1]
    run = run_command(["python", "-m", "benchmarks.convert_memory", *shape])
    assert run.returncode == 0, run.output
    found = json.loads(run.output.splitlines()[-1])
    slack = 100_000_000  # what the C library keeps of freed memory, up to about 64 MB seen
    assert found["model"] > 400_000_000 and found["largest_tensor"] < 40_000_000
    assert 0 < found["import"][0] < found["largest_tensor"] + slack
    # The export has a tensor as it was stored and as it is copied out, and the shard that it is filling.
    assert 0 < found["export"][0] < 2 * found["largest_tensor"] + found["shard"] + slack
