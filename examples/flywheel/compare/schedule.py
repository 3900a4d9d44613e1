"""Runs that need one another, some at once; what is done is not done again, and a kill leaves nothing half done."""

import fcntl
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from compare.commands import StageFailed
from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError


@dataclass(frozen=True)
class Node:
    """One piece of work, of which nothing counts until it has ended."""

    name: str
    action: Callable[[], None]
    needs: tuple[str, ...] = ()
    what: str = ""
    threads: int = 1
    """How many of the schedule's jobs it takes: runs whose threads are more than the cores slow each other down many
    times over."""


class Schedule:
    """Works through nodes in their order, as far as what they need is there."""

    def __init__(self, run_dir: Path, jobs: int) -> None:
        self._done = run_dir / "done"
        self._done.mkdir(parents=True, exist_ok=True)
        self._jobs = jobs
        self._lock = (run_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{run_dir}: another comparison works here; wait for it, or choose another RUN_DIR"
            ) from None
        self._print = threading.Lock()

    def run(self, nodes: Sequence[Node]) -> list[str]:
        """Do what is not done; the names of those that failed or could not be begun."""
        waiting = {node.name: node for node in nodes if not (self._done / node.name).exists()}
        missing = {need for node in waiting.values() for need in node.needs} - waiting.keys()
        lost = sorted(need for need in missing if not (self._done / need).exists())
        if lost:
            raise UserError(f"what is asked for needs {', '.join(lost)}, which is neither done nor asked for")
        total, failed, running = len(waiting), [], dict[Future[None], Node]()
        with ThreadPoolExecutor(self._jobs) as pool:
            while waiting or running:
                for name in [*waiting]:
                    node = waiting[name]
                    if any(need in failed for need in node.needs):
                        failed.append(name)
                        del waiting[name]
                    elif self._room(node, running.values()) and all(
                        (self._done / need).exists() for need in node.needs
                    ):
                        running[pool.submit(self._do, node)] = node
                        del waiting[name]
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    node = running.pop(future)
                    try:
                        future.result()
                        self._say(f"{total - len(waiting) - len(running)}/{total} {node.name}: done")
                    except Exception as error:  # the others go on: hours of them may be waiting
                        failed.append(node.name)
                        if not isinstance(error, StageFailed):
                            traceback.print_exception(error)
                        self._say(f"{node.name}: FAILED, {error!r}")
        self._lock.close()
        return failed

    def _room(self, node: Node, running: Iterable[Node]) -> bool:
        """Whether it may begin beside those that run; one alone always may."""
        taken = sum(one.threads for one in running)
        return taken == 0 or taken + node.threads <= self._jobs

    def _do(self, node: Node) -> None:
        start = time.monotonic()
        self._say(f"{node.name}: {node.what}")
        node.action()
        write_whole(self._done / node.name, json.dumps({"seconds": round(time.monotonic() - start, 1)}) + "\n")

    def _say(self, text: str) -> None:
        with self._print:
            print(f"> {time.strftime('%H:%M:%S')} {text}", flush=True)
