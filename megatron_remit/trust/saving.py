"""The digests of a training run's checkpoints, made while the run goes on.

Each rank reads back what it wrote, in a thread of its own, once the checkpoint is finished on all ranks: a step waits
for nothing, and an asynchronous save stays one. A run that is killed before the thread is done leaves a checkpoint
without these digests, which loads with a note. (hashlib lets go of Python's lock while it works.)
"""

import functools
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from megatron.training import checkpointing, get_args

from megatron_remit.errors import note
from megatron_remit.trust import digests
from megatron_remit.trust.loading import checkpoint_files

_RANKS_FILE = re.compile(r"__(\d+)_.*")


class _Saves:
    """The save that is on its way, and the thread that makes digests of earlier ones."""

    def __init__(self) -> None:
        self.saving: Path | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="digests")
        self._pending: dict[Path, Future[None]] = {}

    def begin(self, folder: Path) -> None:
        """Forget what an earlier save of the same iteration left: its digests would refuse the new files."""
        earlier = self._pending.pop(folder, None)
        if earlier is not None:
            earlier.result()
        rank, _ = _rank_and_size()
        for listing in folder.glob(digests.LISTS if rank == 0 else f"remit-{rank:05d}.sha256"):
            listing.unlink(missing_ok=True)
        self.saving = folder

    def finished(self, folder: Path) -> None:
        """All ranks have written their files of ``folder``."""
        self._pending[folder] = self._thread.submit(_write, folder, *_rank_and_size())


_saves = _Saves()


def _rank_and_size() -> tuple[int, int]:
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _write(folder: Path, rank: int, ranks: int) -> None:
    """List the files that this rank wrote; the first rank also those that belong to none."""
    try:
        own = [path for path in checkpoint_files(folder) if _owner(path, ranks) == rank]
        if own:
            digests.write_digests(folder, own, rank)
    except FileNotFoundError:
        pass  # Megatron removes old checkpoints as it goes
    except OSError as error:
        note(f"{folder}: its digests were not written ({error}); it will load with a note")


def _owner(path: Path, ranks: int) -> int:
    found = _RANKS_FILE.fullmatch(path.name)
    return int(found.group(1)) if found and int(found.group(1)) < ranks else 0


def with_digests(save_checkpoint: Any) -> Any:
    """Megatron's ``save_checkpoint``, after which digests of its files are made; not those of non-persistent ones."""

    @functools.wraps(save_checkpoint)
    def call(iteration: int, *rest: Any, **named: Any) -> Any:
        args = get_args()
        if args.save is None or named.get("non_persistent_ckpt"):
            return save_checkpoint(iteration, *rest, **named)
        release = named.get("release", False)
        name = checkpointing.get_checkpoint_name(args.save, iteration, release=release, return_base_dir=True)
        _saves.begin(Path(name))
        try:
            result = save_checkpoint(iteration, *rest, **named)
            if not args.async_save:
                _saves.finished(Path(name))
        finally:
            _saves.saving = None
        return result

    return call


def scheduled_with_digests(schedule_async_save: Any) -> Any:
    """Megatron's ``schedule_async_save``: digests are made once all ranks have written the checkpoint."""

    @functools.wraps(schedule_async_save)
    def call(request: Any) -> Any:
        if _saves.saving is not None:
            request.add_finalize_fn(functools.partial(_saves.finished, _saves.saving))
            _saves.saving = None
        return schedule_async_save(request)

    return call
