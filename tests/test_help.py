"""``--help`` of every program and script, and the image's default command: a bare % in a help text is a traceback."""

import json
import re

import pytest

from tests.ranks import ROOT, run_command, run_job

FOLDERS = ("tools", "benchmarks", "examples", "examples/flywheel")
# run_checks of benchmarks/common.py has the parser of the programs that call it.
PARSES = re.compile(r"(argparse\.ArgumentParser|run_checks)\(")
PROGRAMS = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.py"))
    if folder == "tools" or (PARSES.search(text := path.read_text(encoding="utf-8")) and "__main__" in text)
]

# Those that only hand their arguments over to a program above, and those that no user starts.
OTHERS = ("compare_tiny.sh", "flywheel_tiny.sh", "find_python.sh", "stage.sh", "ray_node.sh")
SCRIPTS = [
    path
    for folder in ("tools", "benchmarks", "examples", "examples/flywheel_olmo2_1b", "tests/slurm")
    for path in sorted((ROOT / folder).glob("*.sh"))
    if path.name not in OTHERS
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help(program):
    run = run_job(0, script=str(program), command_line=["--help"], cwd=program.parent)
    assert run.returncode == 0 and f"usage: {program.name} " in run.output, run.output


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_of_a_script_is_the_comment_at_its_head(script):
    run = run_command(["bash", script, "--help"])
    head = script.read_text(encoding="utf-8").split("\nset -euo pipefail\n")[0].splitlines()[1:]
    shown = [line.removeprefix("#").removeprefix(" ") for line in head if not line.startswith("#SBATCH")]
    assert len(shown) > 2 and run.returncode == 0 and run.output.splitlines() == shown, run.output


def test_the_default_command_of_the_image():
    (text,) = re.findall(r"^CMD (.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    program, *words = json.loads(text)
    assert program == "torchrun"
    run = run_command(["python", "-m", "torch.distributed.run", *words])
    assert run.returncode == 0 and "--remit-epsilon" in run.output and "--train-iters" in run.output, run.output[-3000:]
