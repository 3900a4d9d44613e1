"""Programs that a model wrote, run for their tests: HumanEval and MBPP.

lm-eval takes the executor ``code_eval`` from the hub and runs the code inside its own process. Here each program gets a
Python of its own, in an empty folder, with limits on time, memory and file sizes, and without this environment's
variables. That keeps accidents small. It is NO sandbox: such a program can read what the user can read, and reach the
network. Nothing is executed without ``--allow-code-execution``.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SECONDS = 10  # of wall-clock time, with the start of Python; code_eval gives 3 without it
MEMORY = 4 * 2**30  # bytes of address space
FILE_SIZE = 16 * 2**20  # bytes
UNSAFE_TASKS = ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus")

# The last line is reached only if the program neither failed nor left early, as with exit().
_RUNNER = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({FILE_SIZE}, {FILE_SIZE}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
runpy.run_path("program.py", run_name="candidate")
open("passed", "w").close()
"""


def passes(program: str) -> bool:
    """Whether ``program`` reaches its end in time without an exception."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # A model may write halves of surrogate pairs: no Python program, so it fails.
        Path(folder, "program.py").write_text(program, encoding="utf-8", errors="surrogatepass")
        process = subprocess.Popen(
            # -I: no variable of Python's and not the user's packages; numpy, which MBPP+ needs, is in the environment.
            [sys.executable, "-I", "-c", _RUNNER],
            cwd=folder,
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end_all(process)
        return Path(folder, "passed").exists()


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """End ``process`` and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all have ended
    process.wait()


def pass_at_1(references: Sequence[str], predictions: Sequence[str | Sequence[str]]) -> float:
    """lm-eval's metric for MBPP: 1.0 if the first prediction passes the tests of the first reference, else 0.0."""
    prediction = predictions[0] if isinstance(predictions[0], str) else predictions[0][0]
    return float(passes(f"{prediction}\n{references[0]}"))


def pass_at_k(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """lm-eval's metric for HumanEval, for its one answer per problem: ``k`` is [1]."""
    if list(k) != [1] or len(predictions[0]) != 1:
        raise ValueError(f"pass@k for k = {list(k)} of {len(predictions[0])} answers: only pass@1 of one is there")
    return {"pass@1": pass_at_1(references, predictions)}


def continued(resps: list[list[str]], docs: list[dict]) -> list[list[str]]:
    """lm-eval's filter for HumanEval: the prompt, which is the head of a function, and the answer after it."""
    return [[doc["prompt"] + answer for answer in answers] for answers, doc in zip(resps, docs, strict=True)]
