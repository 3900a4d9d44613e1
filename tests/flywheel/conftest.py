"""One synthetic run for the whole folder; tests that break it work on a copy. And stages whose commands start warm."""

import shutil

import pytest
from compare.commands import Commands, StageFailed
from report.build import build_report

from tests.flywheel.synthetic import make_run
from tests.ranks import ROOT, run_job


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A complete run folder with its report built."""
    folder = make_run(tmp_path_factory.mktemp("report") / "run")
    build_report(folder)
    return folder


@pytest.fixture
def broken(run_dir, tmp_path):
    """A copy of the run folder without its report, to be damaged."""
    return shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("report.html", "results.json"))


@pytest.fixture(scope="module")
def warm():
    """The commands of the stages run in processes that have torch and Megatron already, which is most of what a few
    steps take; ``test_a_killed_comparison_leaves_no_process_and_goes_on`` starts them as the programs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Commands, "_run", _run)
        yield


def _run(commands, command):
    words, ranks = command[1:], 0
    if words[:2] == ["-m", "torch.distributed.run"]:
        assert words[2:4] == ["--standalone", "--nproc-per-node=1"]
        words, ranks = words[4:], 1
    if words[0] == "-m":
        run = run_job(ranks, module=words[1], command_line=words[2:], cwd=ROOT)
    else:
        run = run_job(ranks, script=str(ROOT / words[0]), command_line=words[1:], cwd=ROOT)
    commands.log.parent.mkdir(parents=True, exist_ok=True)
    with commands.log.open("a") as log:
        print(f"$ {' '.join(command)}\n{run.output}", file=log)
    if run.returncode:
        raise StageFailed(f"status {run.returncode}: {run.failure()}")
