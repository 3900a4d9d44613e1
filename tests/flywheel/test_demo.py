"""The demo, with a few steps for everything: every stage runs, and the report says what the runs say."""

import json
import subprocess
import sys

import pytest
from results.cells import Cells, read_cells

from tests.ranks import ROOT, environment


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_makes_several_runs_of_each_arm_the_checks_and_the_report(tmp_path):
    ran = environment() | {"FLYWHEEL_SMOKE": "1", "RUN_DIR": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "examples/flywheel_tiny.sh", "--jobs", "1"], cwd=ROOT, env=ran, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [json.loads(path.read_text()) for path in sorted((tmp_path / "checks").iterdir())]
    assert len(checks) == 3 and all(check["equal"] for check in checks), checks
    assert len(Cells(read_cells(tmp_path), {}).where(study="demo", stage="mid")) == 9
    assert f"open file://{tmp_path}/report.html" in done.stdout and "Nats a solution; 95 % intervals" in done.stdout
    text = (tmp_path / "report.html").read_text()
    assert "bit for bit" in text and "solution: slips" in text
