"""What the campaign runs, kills and starves: commands in the folder of a world, and what each of them makes."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.campaign.world import run_flags
from tests.checkpoints import load_tensors
from tests.conftest import Material
from tests.ranks import ROOT, Run, run_job
from tests.score_store.programs import rows_of

OUT = "new"
MATERIAL = Material(Path("policy"), Path("reference"), Path("corpus"))


@dataclass(frozen=True)
class Command:
    """A program that makes ``OUT``; a second start of a killed one may have other flags."""

    ranks: int
    what: dict[str, str]
    flags: Callable[[Path], list[str]]
    """By the folder of the world, as the files in it stand."""
    made: Callable[[Path], object]
    """The content of what it has made, to be compared."""

    def run(self, folder: Path, timeout: int = 300, limit: int | None = None) -> Run:
        """In ``folder``; with ``limit`` no file may grow beyond so many bytes."""
        flags = self.flags(folder)
        if limit is None:
            return run_job(self.ranks, command_line=flags, cwd=folder, timeout=timeout, **self.what)
        program = self.what.get("script") or self.what["module"]
        words = [str(limit), program, *flags]
        return run_job(self.ranks, module="tests.campaign.small_disk", command_line=words, cwd=folder, timeout=timeout)


def same(one: object, other: object) -> bool:
    """Whether two results are equal, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool((one == other).all()) if hasattr(one, "shape") else one == other


def _tool(name: str, *flags: str, made: Callable[[Path], object], ranks: int = 0) -> Command:
    return Command(ranks, {"script": str(ROOT / f"tools/{name}.py")}, lambda _: list(flags), made)


def _files(pattern: str) -> Callable[[Path], object]:
    """The bytes of each file of these names. A conversion's note of the time is no part of what it made."""

    def content(folder: Path) -> object:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern) if path.is_file()}

    return content


def _train(folder: Path) -> list[str]:
    """As a job script starts it: from its own checkpoint if there is one."""
    flags = run_flags(OUT) | {"save_interval": 1}
    if (folder / OUT / "latest_checkpointed_iteration.txt").exists():
        flags |= {"load": OUT, "finetune": None}
    return MATERIAL.remit(**flags)


def _checkpoint(folder: Path) -> object:
    step = (folder / OUT / "latest_checkpointed_iteration.txt").read_text()
    return {"step": step} | load_tensors(folder / OUT / f"iter_{int(step):07d}")


COMMANDS = {
    "train": Command(1, {"module": "megatron_remit.pretrain"}, _train, _checkpoint),
    "score": _tool(
        "score_corpus",
        *MATERIAL.remit(row_seed=3, score_store=OUT),
        made=lambda folder: rows_of(folder / OUT),
        ranks=1,
    ),
    "import": _tool("import_hf", "--hf", "exported", "--out", OUT, made=_files(f"{OUT}/**/*")),
    "export": _tool(
        "export_hf", "--megatron", "policy", "--hf-template", "hf_policy", "--out", OUT, made=_files(f"{OUT}/**/*")
    ),
    "preprocess": _tool(
        "preprocess_corpus",
        *("--input", "text.jsonl", "--output-prefix", OUT, "--tokenizer-model", "hf_policy"),
        made=_files(f"{OUT}.[bi][id][nx]"),
    ),
}


def remove_made(folder: Path) -> None:
    """Forget what a command made."""
    for path in folder.glob(f"{OUT}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
