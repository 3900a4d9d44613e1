"""The demo, and a comparison that goes on from it, with a few steps for everything: every stage runs, and the pages say
what the runs say."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout

import compare_methods
import demo
import pytest
from results.cells import Cells, read_cells

from tests.ranks import ROOT, environment, run_command

OF_ONE = ("--bases", "1", "--orders", "1", "--arms")


def test_the_script_hands_its_flags_and_folder_over(tmp_path):
    show = tmp_path / "python"
    show.write_text('#!/bin/sh\necho "$@"\n')
    show.chmod(0o755)
    ran = environment() | {"FLYWHEEL_SMOKE": "1", "RUN_DIR": "there", "PYTHON": str(show)}
    command = ["bash", "examples/flywheel_tiny.sh", "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, env=ran, capture_output=True, text=True)
    assert done.stdout.split() == ["examples/flywheel/demo.py", "--run-dir", "there", "--smoke", "--jobs", "1"]


def run_here(program, *flags):
    """The program, in this process, in the sizes of a try; one run at once, as the other core has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program.__name__, "--smoke", "--jobs", "1", *flags])
        program.main()


@pytest.fixture(scope="module")
def folder(warm, tmp_path_factory):
    """The run folder of both."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def printed(folder, tmp_path_factory):
    """What the demo prints when its run is in ``folder``."""
    path = tmp_path_factory.mktemp("printed") / "text"
    with path.open("w") as file, redirect_stdout(file):
        run_here(demo, "--run-dir", str(folder))
    return path.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_makes_several_runs_of_each_arm_the_checks_and_the_report(printed, folder):
    checks = [json.loads(path.read_text()) for path in sorted((folder / "checks").iterdir())]
    assert len(checks) == 3 and all(check["equal"] for check in checks), checks
    assert len(Cells(read_cells(folder), {}).where(study="methods", stage="mid")) == 6
    assert f"open file://{folder}/report.html" in printed and "Nats a solution; 95 % intervals" in printed
    text = (folder / "report.html").read_text()
    assert "bit for bit" in text and "solution: slips" in text
    kinds = json.loads((folder / "token_kinds.json").read_text())["kinds"]
    assert {one["policy"] for one in kinds} == {"base", "after NTP", "after ReMiT"}


@pytest.fixture(scope="module")
def compared(printed, folder):
    """A comparison goes on in the demo's folder: arms with a store or a second reference in addition to its own."""
    run_here(compare_methods, "--run-dir", str(folder), *OF_ONE, "ntp", "remit", "contrast", "miniplm")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_comparison_goes_on_from_the_demo_and_makes_the_figures_of_each_arm_and_the_page(compared, tmp_path):
    cells = Cells(read_cells(compared), {})
    assert {"ntp", "remit", "contrast", "miniplm"} <= set(cells.values("arm", study="methods"))
    (cell,) = cells.where(study="methods", arm="remit", order="1")
    assert cell["points"][-1]["tokens"] == 9216
    assert {"lm loss", "grad-norm", "weight std"} <= set(cell["tensorboard"])
    out = ["--json", tmp_path / "page.json", "--out", tmp_path / "page.md"]
    written = run_command(["python", "examples/flywheel/results_page.py", "--gather", compared, *out])
    assert written.returncode == 0, written.output
    text = (tmp_path / "page.md").read_text()
    assert "| ReMiT |" in text and "without the variation of bases" in text
    assert "solution: slips" in text, "weights by kind of token"
    assert "not been run yet" in text, "one thread and two"


@pytest.mark.slow
def test_a_killed_comparison_leaves_no_process_and_goes_on(compared, tmp_path):
    shutil.copytree(compared, tmp_path / "run", symlinks=True)
    cell = tmp_path / "run/done/methods.ntp.b1.e30.1M.o1"
    cell.unlink()
    command = [sys.executable, "examples/flywheel/compare_methods.py", "--smoke", "--run-dir", str(tmp_path / "run")]
    command += [*OF_ONE, "ntp"]
    running = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    log = tmp_path / "run/logs/methods.ntp.b1.e30.1M.o1.log"
    size = log.stat().st_size
    deadline = time.monotonic() + 60
    while log.stat().st_size == size and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    deadline = time.monotonic() + 30
    while _under(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _under(tmp_path / "run") == [] and not cell.exists()
    assert subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True).returncode == 0
    name = "eval/methods.ntp.b1.e30.1M.o1.json"
    before, after = (json.loads((one / name).read_text()) for one in (compared, tmp_path / "run"))
    assert after["points"][-1]["nll"] == before["points"][-1]["nll"]


def _under(folder):
    """Processes whose command names ``folder``."""
    found = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True).stdout.split()
    return [pid for pid in found if int(pid) != os.getpid()]
