"""``--help`` of every program, and the image's default command: a bare % in one help text ends in a traceback."""

import json
import re

import pytest

from tests.ranks import ROOT, run_command, run_job

FOLDERS = ("tools", "benchmarks", "examples", "examples/flywheel")
PROGRAMS = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.py"))
    if folder == "tools" or "argparse.ArgumentParser(" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help(program):
    run = run_job(0, script=str(program), command_line=["--help"], cwd=program.parent)
    assert run.returncode == 0 and f"usage: {program.name} " in run.output, run.output


def test_the_default_command_of_the_image():
    (text,) = re.findall(r"^CMD (.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    program, *words = json.loads(text)
    assert program == "torchrun"
    run = run_command(["python", "-m", "torch.distributed.run", *words])
    assert run.returncode == 0 and "--remit-epsilon" in run.output and "--train-iters" in run.output, run.output[-3000:]
