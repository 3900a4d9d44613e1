"""The demo, with a few steps for everything: every stage runs, and the report says what the runs say."""

import json
import subprocess
import sys

import demo
import pytest
from results.cells import Cells, read_cells

from tests.ranks import ROOT, environment


def test_the_script_hands_its_flags_and_folder_over(tmp_path):
    show = tmp_path / "python"
    show.write_text('#!/bin/sh\necho "$@"\n')
    show.chmod(0o755)
    ran = environment() | {"FLYWHEEL_SMOKE": "1", "RUN_DIR": "there", "PYTHON": str(show)}
    command = ["bash", "examples/flywheel_tiny.sh", "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, env=ran, capture_output=True, text=True)
    assert done.stdout.split() == ["examples/flywheel/demo.py", "--run-dir", "there", "--smoke", "--jobs", "1"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_makes_several_runs_of_each_arm_the_checks_and_the_report(warm, tmp_path, monkeypatch, capsys):
    # One at once: the other core has tests of its own.
    monkeypatch.setattr(sys, "argv", ["demo.py", "--smoke", "--run-dir", str(tmp_path), "--jobs", "1"])
    demo.main()
    printed = capsys.readouterr().out
    checks = [json.loads(path.read_text()) for path in sorted((tmp_path / "checks").iterdir())]
    assert len(checks) == 3 and all(check["equal"] for check in checks), checks
    assert len(Cells(read_cells(tmp_path), {}).where(study="methods", stage="mid")) == 6
    assert f"open file://{tmp_path}/report.html" in printed and "Nats a solution; 95 % intervals" in printed
    text = (tmp_path / "report.html").read_text()
    assert "bit for bit" in text and "solution: slips" in text
