"""HTML pages that load nothing: the templates that all pages share, the page of a comparison, and what made a page."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, FileSystemLoader, PackageLoader, StrictUndefined
from jinja2.loaders import ChoiceLoader

from megatron_remit.analysis.figures import Drawn
from megatron_remit.analysis.heatmap import Heatmap, ShownText, TokenMargin
from megatron_remit.analysis.inputs import Texts
from megatron_remit.analysis.score import Scores

SHOWN_MARGINS = 20
PACKAGES = ("torch", "megatron-core", "transformers", "trl", "lm_eval", "tokenizers", "numpy")


class Table(NamedTuple):
    """A table of texts."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class HeatmapSection:
    """The coloured texts of a pair of models, and the tokens with the largest margins."""

    title: str
    scale: tuple[str, list[str], str]
    texts: list[ShownText]
    tables: list[tuple[str, Table]]

    @classmethod
    def of(cls, heatmap: Heatmap, texts: Texts, margins: list[TokenMargin]) -> "HeatmapSection":
        """``margins`` begin with the tokens that the first model predicts better."""
        sides = [(heatmap.a, margins)] + ([(heatmap.b, margins[::-1])] if heatmap.two_sided else [])
        tables = [
            (f"Tokens that {name} predicts better", _margins(some[:SHOWN_MARGINS])) for name, some in sides if some
        ]
        return cls(f"{heatmap.a} against {heatmap.b}", heatmap.scale(), heatmap.shown(texts), tables)


def environment(folder: Path | None = None) -> Environment:
    """Jinja2 that escapes whatever it fills in, with this room's templates and those in ``folder``.

    A page extends ``base.html``, which has the style sheet in it; ``macros.html`` has tables and coloured texts.
    """
    loaders = [PackageLoader("megatron_remit.analysis")]
    return Environment(
        loader=ChoiceLoader(loaders if folder is None else [FileSystemLoader(folder), *loaders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def now() -> str:
    """Date, time and time zone for the head of a page."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def page(
    models: dict[str, Path],
    texts: Texts | None,
    scores: Scores | None,
    figures: list[tuple[str, Drawn]],
    heatmaps: list[HeatmapSection],
) -> str:
    """The comparison as one HTML document: ``figures`` are titles with what was drawn."""
    size = f" · {len(texts.ids_N):,} tokens of {len(texts):,} texts" if texts is not None else ""
    return environment().get_template("compare.html").render(
        meta=now() + size,
        models=_models(models, scores) if scores is not None else None,
        figures=figures,
        heatmaps=heatmaps,
        versions=Table(("what", "version"), [(name, str(value)) for name, value in (versions() | machine()).items()]),
    )  # fmt: skip


def _models(models: dict[str, Path], scores: Scores) -> Table:
    head = ["model", "folder", "mean log p, nats/token"]
    if scores.kl:
        head.append("mean KL to the teacher, nats/token")
    rows = []
    for name, folder in models.items():
        row = [name, folder.name, f"{scores.logp[name].mean():.4f}"]
        if scores.kl:
            row.append(f"{scores.kl[name].mean():.4f}" if name in scores.kl else "teacher")
        rows.append(row)
    return Table(head, rows)


def _margins(margins: list[TokenMargin]) -> Table:
    rows = [(one.token, f"{one.count:,}", f"{one.mean:+.3f} ± {one.stderr:.3f}") for one in margins]
    return Table(("token", "times", "mean margin, nats ± standard error"), rows)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter, None for one that is not installed, and the git commit."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found | {"git commit": _commit()}


def machine() -> dict[str, Any]:
    """The device and the processor cores that this process may use."""
    if torch.cuda.is_available() and torch.version.cuda and torch.cuda.device_count():
        device = torch.cuda.get_device_name(0)
    else:
        device = "CPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": device, "processor": _processor(), "cores": cores, "system": platform.platform(terse=True)}


def _commit() -> str | None:
    """The commit of the source tree, with '+changes' if tracked files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
