"""A conversion needs memory for its largest tensor and one shard, not for the model."""

import json

from tests.ranks import ROOT, run_command


def test_import_and_export_hold_one_tensor_and_one_shard():
    run = run_command(["python", ROOT / "benchmarks/convert_memory.py", "--layers", 14, "--vocabulary", 24000])
    assert run.returncode == 0, run.output
    found = json.loads(run.output.splitlines()[-1])
    slack = 16_000_000
    assert found["model"] > 5 * found["largest tensor"] and found["model"] > 4 * found["shard"]
    assert 0 < found["import peak"] < found["largest tensor"] + slack
    assert 0 < found["export peak"] < found["largest tensor"] + found["shard"] + slack
