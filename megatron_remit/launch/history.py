"""The failures of a run over all its starts, in ``RUN_DIR/failures.json``: how often to try again, and without whom.

Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

FORMAT = 1


@dataclass(frozen=True)
class Incident:
    """A start that ended without the run's last step, and not because Slurm asked it to."""

    kind: str
    """``failed`` or ``hung``."""
    saved: int
    """The step of the last checkpoint then: from where the run goes on."""
    reached: int
    """The last step that was made; 0 if it is not known."""
    rank: int | None
    node: str
    """Where it began; empty if that is not known."""
    text: str
    """What happened, in words."""
    time: str
    start: str
    """Which start of which job it was: the name of its folder in ``RUN_DIR/logs``."""


class History:
    """The incidents of a run, oldest first."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "failures.json"
        self._incidents = _read(self._path)

    def add(self, incident: Incident) -> None:
        """Note ``incident``. On a full disk it is known to this start of the job alone."""
        self._incidents.append(incident)
        rows = [asdict(one) for one in self._incidents]
        write_small(self._path, json.dumps({"format": FORMAT, "incidents": rows}, indent=1) + "\n")

    def in_a_row(self, saved: int) -> int:
        """How many incidents there were since the run saved step ``saved``."""
        count = 0
        for incident in reversed(self._incidents):
            if incident.saved != saved:
                break
            count += 1
        return count

    def knows(self, text: str, reached: int) -> bool:
        """Whether the last incident was the same, at the same step."""
        last = self._incidents[-1] if self._incidents else None
        return last is not None and (last.text, last.reached) == (text, reached)

    def bad_nodes(self, failures: int) -> list[str]:
        """The nodes on which at least ``failures`` incidents began; none with 0."""
        counts = Counter(incident.node for incident in self._incidents if incident.node)
        return sorted(node for node, count in counts.items() if failures and count >= failures)


def _read(path: Path) -> list[Incident]:
    try:
        return [Incident(**row) for row in json.loads(path.read_text(encoding="utf-8"))["incidents"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # none yet, or cut short: a record, no more; a run does not fail for it


def pause_seconds(first: float, attempt: int) -> float:
    """How long to wait before the try after ``attempt`` failures in a row: the pauses double."""
    return first * 2 ** (attempt - 1)


def write_small(path: Path, text: str) -> bool:
    """Write a file of a page: whole under its name, on a full disk over what is there. Whether that went well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        return True
    except OSError:
        pass
    try:
        temporary.unlink()
    except OSError:
        pass
    try:
        # The blocks of the old file are there, so this needs none.
        with path.open("r+b") as file:
            file.write(text.encode())
            file.truncate()
        return True
    except OSError:
        return False
