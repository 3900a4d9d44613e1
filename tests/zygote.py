"""A process that has imported torch, Megatron and the programs once, and forks a copy of itself for each rank of a job.

Importing takes each rank of a test's run about 6 seconds of CPU, several times what the run itself takes. A forked rank
starts from the same modules, as nothing has happened in this process but imports and the table of Megatron's flags, and
with the environment variables that torchrun sets. The yardstick of tests/test_exactness.py, tests/launch/test_node.py
and the Slurm jobs run under torchrun itself.

tests/ranks.py is the client.
"""

import atexit
import ctypes
import gc
import os
import pickle
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

GRACE_SECONDS = 10
"""How long the other ranks have to end after SIGTERM, once a rank has failed."""
_PR_SET_PDEATHSIG = 1
_ROOT = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Job:
    """What each of ``ranks`` processes runs: a module, a script, or a function that is called with its rank first."""

    ranks: int
    """0: one process that is no rank of anything."""
    output: str
    """The file that standard output and standard error of all ranks go to."""
    port: int
    """A free port for the ranks to meet at."""
    cwd: str
    environment: dict[str, str]
    module: str = ""
    script: str = ""
    call: bytes = b""
    """The pickled function and its further arguments, for the ranks to unpickle."""
    path: tuple[str, ...] = ()
    """Where the function's module is found: pytest's ``sys.path``."""
    command_line: list[str] = field(default_factory=list)


def serve(connection: Connection) -> None:
    """Run jobs until the other side hangs up. Answers 0 if all ranks of a job ended well, else the first other code."""
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_run(job))


def _run(job: Job) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    running = {}
    for rank in range(max(job.ranks, 1)):
        pid = os.fork()
        if pid == 0:
            _be_rank(job, rank)
        running[pid] = rank
    code = 0
    deadline = float("inf")
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            if time.monotonic() > deadline:
                _signal(running, signal.SIGKILL)
            time.sleep(0.02)
            continue
        if pid not in running:
            continue
        del running[pid]
        ended = os.waitstatus_to_exitcode(status)
        if ended and not code:
            code, deadline = ended, time.monotonic() + GRACE_SECONDS
            _signal(running, signal.SIGTERM)
    return code


def _signal(pids: dict[int, int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def _be_rank(job: Job, rank: int) -> None:
    """In the forked process; never returns."""
    # No rank outlives this file's process, which ends with the tests.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        file = os.open(job.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(job.cwd)
        os.environ.clear()
        os.environ.update(job.environment)
        if job.ranks:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port))
            os.environ.update(WORLD_SIZE=str(job.ranks), LOCAL_WORLD_SIZE=str(job.ranks))
        _execute(job, rank)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _execute(job: Job, rank: int) -> None:
    if job.call:
        sys.path[:] = job.path
        function, arguments = pickle.loads(job.call)
        function(rank, *arguments)
        return
    sys.argv = [job.module or job.script, *job.command_line]
    sys.path[0] = job.cwd if job.module else str(Path(job.script).parent)
    # A checkpoint's writer starts a process that imports __main__ again, which is this file, wherever the job works.
    sys.path.append(_ROOT)
    if job.module:
        # The module stays out of sys.modules for the same reason.
        runpy.run_module(job.module, run_name="__main__")
    else:
        runpy.run_path(job.script, run_name="__main__")


def main(prepare: Callable[[], None] = lambda: None) -> None:
    """Import all, ``prepare`` and serve."""
    connection = Connection(int(sys.argv[1]))
    import torch._dynamo  # noqa: F401  an optimizer's first call imports it

    # What the programs import, and what the functions of the tests build models with.
    import megatron_remit.convert.hf_to_megatron
    import megatron_remit.convert.megatron_to_hf
    import megatron_remit.data.preprocess
    import megatron_remit.programs.score_corpus
    import megatron_remit.programs.score_store
    import megatron_remit.programs.select_samples
    import megatron_remit.programs.train  # noqa: F401
    import tests.hf_models  # noqa: F401
    from megatron_remit import megatron_flags

    megatron_flags.numbers()  # a parser of 800 flags, which every start makes
    prepare()
    gc.collect()
    gc.freeze()
    serve(connection)


if __name__ == "__main__":
    main()
