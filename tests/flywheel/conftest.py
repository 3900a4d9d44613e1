"""One synthetic run for the whole folder; tests that break it work on a copy."""

import shutil

import pytest
from report.build import build_report

from tests.flywheel.synthetic import make_run


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
