"""The launcher gets a worker's checkpoint saved, whichever signal Slurm sends and whenever it sends it; of workers that
fail or hang it keeps what they said."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from megatron_remit.launch.failures import root_cause
from tests.ranks import ROOT, free_port

# Like Megatron with --exit-signal-handler: a handler that is set late, a step under way, a save, the end.
WORKER = """
import os, signal, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
(folder / f"started_{rank}").touch()
time.sleep(1.5)
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
(folder / f"ready_{rank}").touch()
while not asked:
    time.sleep(0.05)
time.sleep(1.5)
(folder / f"saved_{rank}").write_text(str(len(asked)))
"""


def launcher_of(folder, workers):
    """The launcher's command line for ``workers`` processes of worker.py in ``folder``."""
    meeting = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    launcher = [sys.executable, "-m", "megatron_remit.launch.node", str(folder / "logs")]
    launcher += ["--nnodes=1", f"--nproc-per-node={workers}"]
    return [*launcher, *meeting, str(folder / "worker.py")]


def launched(folder, workers, worker, **environment):
    """What the launcher says and how it ends where each of ``workers`` processes runs the text ``worker``."""
    (folder / "worker.py").write_text(worker)
    environment = dict(os.environ, OMP_NUM_THREADS="1", **environment)
    command = launcher_of(folder, workers)
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=240, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "moment"), [(signal.SIGUSR1, "started"), (signal.SIGTERM, "ready")])
def test_workers_are_asked_once_and_waited_for(number, moment, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    launcher = subprocess.Popen(
        [*launcher_of(tmp_path, 2), str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1", SLURM_NODEID="0"),
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 240
        while not all((tmp_path / f"{moment}_{rank}").exists() for rank in range(2)):
            assert launcher.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        # To every process of the step, as scancel does on a cluster without control groups; workers have a session of
        # their own and are reached through the launcher.
        os.killpg(launcher.pid, number)
        assert launcher.wait(timeout=120) == 0
    finally:
        launcher.kill()
    assert [(tmp_path / f"saved_{rank}").read_text() for rank in range(2)] == ["1", "1"]
    assert (tmp_path / "logs/asked-node-0").exists()


# Rank 1 fails, and rank 0 then loses the connection to it, as ranks do.
FAILING = """
import os, sys, time
print("rank", os.environ["RANK"], "begins")
if os.environ["RANK"] == "0":
    time.sleep(0.05)
    raise RuntimeError("[gloo] Connection closed by peer")
raise ValueError("not a token: 7")
"""


@pytest.mark.slow
def test_a_failed_worker_fails_the_launcher_and_leaves_its_log_and_its_reason(tmp_path):
    done = launched(tmp_path, 2, FAILING, SLURMD_NODENAME="n7")
    assert done.returncode == 1
    cause = root_cause(tmp_path / "logs")
    assert (cause.rank, cause.node, cause.status, cause.line) == (1, "n7", 1, "ValueError: not a token: 7")
    assert f"> {cause}" in done.stderr
    # Each rank's output is in its file, and in the node's with the rank in front.
    assert (tmp_path / "logs/rank-00001.stdout.log").read_text() == "rank 1 begins\n"
    assert "1: rank 1 begins" in done.stdout and "0: rank 0 begins" in done.stdout
    assert "1: ValueError: not a token: 7" in done.stderr


# A rank whose last line has no end, as where the disk of its log is full.
UNFINISHED = """
import sys
print("to its end")
sys.stdout.write("no room for the end of th")
sys.exit(1)
"""


@pytest.mark.slow
def test_what_the_job_says_next_does_not_stand_behind_a_line_that_a_rank_could_not_end(tmp_path):
    done = launched(tmp_path, 1, UNFINISHED, SLURM_NODEID="0")
    assert done.returncode == 1
    assert done.stdout == "0: to its end\n0: no room for the end of th\n"


# Ranks that hang: one that can say where it is, and one that is stopped.
HANGING = """
import faulthandler, os, signal, sys, time
from pathlib import Path
faulthandler.register(signal.SIGUSR2, all_threads=True)
(Path(sys.argv[1]) / f"ready_{os.environ['RANK']}").touch()
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
def waits_for_the_other():
    time.sleep(600)
waits_for_the_other()
"""


@pytest.mark.slow
def test_workers_that_hang_say_where_they_are_and_are_ended(tmp_path):
    (tmp_path / "worker.py").write_text(HANGING)
    launcher = subprocess.Popen([*launcher_of(tmp_path, 2), str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 240
        while not all((tmp_path / f"ready_{rank}").exists() for rank in range(2)):
            assert launcher.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        launcher.send_signal(signal.SIGUSR2)
        assert launcher.wait(timeout=60) == 1
    finally:
        launcher.kill()
    assert "in waits_for_the_other" in (tmp_path / "logs/rank-00000.stderr.log").read_text()
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]
