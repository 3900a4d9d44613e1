"""What a job notes of its run for the next one in the same ``RUN_DIR``: the base model, and the step of the export.

Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_remit.errors import UserError
from megatron_remit.launch.history import write_small

FORMAT = 1


class Notes:
    """``RUN_DIR/job.json``. A run without the file, such as one of an older version, has noted nothing."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "job.json"
        self._content = _read(self._path)

    @property
    def exported(self) -> int | None:
        """The step of the run's exported model, if it is known."""
        step = self._content.get("exported")
        return step if isinstance(step, int) else None

    def exported_after(self, steps: int) -> bool:
        """Whether the exported model is that of ``steps`` steps or more; without a note of it, it is taken for one."""
        return "exported" not in self._content or (self.exported or 0) >= steps

    def note_export(self, step: int | None) -> None:
        """Note that the exported model is that of ``step``; None: the run trains on, so that it no longer is the last.

        A note that a full disk has no room for costs another export.
        """
        self._write(exported=step)

    def note_base(self, hf: Path, imported: Path) -> None:
        """Note from which model the run starts: its Hugging Face folder, and that of its import."""
        self._write(base_hf=str(hf), base=imported.name)

    def check_base(self, hf: Path, imported: Path) -> None:
        """Refuse another base model than the one that the run was started from.

        Raises:
            UserError: names both and says what to do.
        """
        noted = self._content.get("base")
        if noted in (None, imported.name):
            return
        raise UserError(
            f"BASE_HF={hf} (imported as {imported.name}): the run in {self._path.parent} was started from "
            f"{self._content.get('base_hf')} ({noted}). Give that model, or another RUN_DIR for a run of this one. If "
            f"it is the same model, moved or with files written anew since, delete {self._path}"
        )

    def _write(self, **changes: Any) -> None:
        self._content = {"format": FORMAT, **self._content, **changes}
        write_small(self._path, json.dumps(self._content, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # none yet, or cut short: without it the run is exported again, and its base not compared
    return content if isinstance(content, dict) else {}
