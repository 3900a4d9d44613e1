"""torchrun with a log for each rank and a record of what failed: ``python -m megatron_remit.launch.elastic DIR ...``.

``DIR`` gets ``rank-00003.stdout.log`` and ``rank-00003.stderr.log``, which are shown on the node's output too with the
rank in front, and ``failed-node-0.json`` with the ranks that failed (``launch/failures.py``). The rest of the command
line is torchrun's own.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import elastic_launch

from megatron_remit.launch.failures import Failure, first_error, write_failures
from megatron_remit.launch.slurm import node_name

# A rank's output ends with its traceback, and what Megatron prints before it is short.
_READ_BYTES = 1 << 20


class _RankLogs(DefaultLogsSpecs):
    """Two files for each rank, named by its rank in the run; torchrun's own folders have random names."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), redirects=Std.ALL, tee=Std.ALL)
        self._folder = folder
        self._shown: list[tuple[Path, TextIO]] = []

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """The files of the ranks whose environments are ``envs``, by local rank."""
        out, err, errors = {}, {}, {}
        for local_rank, environment in envs.items():
            out[local_rank] = str(log_of(self._folder, int(environment["RANK"]), "stdout"))
            err[local_rank] = str(log_of(self._folder, int(environment["RANK"]), "stderr"))
            errors[local_rank] = os.devnull
            environment["TORCHELASTIC_ERROR_FILE"] = ""
            self._shown += [(Path(out[local_rank]), sys.stdout), (Path(err[local_rank]), sys.stderr)]
        return LogsDest(out, err, dict(out), dict(err), errors, os.devnull, os.devnull)

    def end_lines(self) -> None:
        """End the last line of a log that a rank did not end, as on a full disk: the job's next line is its own."""
        for path, stream in self._shown:
            with suppress(OSError), path.open("rb") as log:  # an empty one has no last byte to look at
                log.seek(-1, os.SEEK_END)
                if log.read() != b"\n":
                    print(file=stream, flush=True)


def log_of(folder: Path, rank: int, stream: str) -> Path:
    """The log of a rank; ``stream`` is ``stdout`` or ``stderr``."""
    return folder / f"rank-{rank:05d}.{stream}.log"


def launch(folder: Path, torchrun_arguments: list[str]) -> None:
    """Run torchrun with logs in ``folder``.

    Raises:
        SystemExit: a rank failed (status 1); the reason is on its own log and in the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = run.parse_args(torchrun_arguments)
    config, command, arguments = run.config_from_args(options)
    logs = _RankLogs(folder)
    config.logs_specs = logs
    config.log_line_prefix_template = "${rank}: "
    try:
        try:
            elastic_launch(config=config, entrypoint=command)(*arguments)
        finally:
            logs.end_lines()
    except ChildFailedError as error:
        now = time.time()
        failures = [_failure(folder, rank, failed, now) for rank, failed in error.failures.items()]
        write_failures(folder / f"failed-node-{options.node_rank}.json", failures)
        for failure in failures:
            print(f"> {failure}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _failure(folder: Path, rank: int, failed: ProcessFailure, now: float) -> Failure:
    try:
        with log_of(folder, rank, "stderr").open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _READ_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        text = ""
    return Failure(rank, node_name(), failed.exitcode, first_error(text), now)


if __name__ == "__main__":
    launch(Path(sys.argv[1]), sys.argv[2:])
