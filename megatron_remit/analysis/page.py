"""HTML pages that load nothing: the templates that all pages share, the page of a comparison, and what made a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, PackageLoader, StrictUndefined
from jinja2.loaders import ChoiceLoader

from megatron_remit.analysis.figures import Drawn
from megatron_remit.analysis.heatmap import Heatmap, ShownText, TokenMargin
from megatron_remit.analysis.inputs import Texts
from megatron_remit.analysis.score import Scores
from megatron_remit.versions import machine, versions

SHOWN_MARGINS = 20


class Table(NamedTuple):
    """A table of texts."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class HeatmapSection:
    """The coloured texts of a pair of models, and the tokens with the largest margins."""

    title: str
    scale: tuple[str, str, str]
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
    found = Environment(
        loader=ChoiceLoader(loaders if folder is None else [FileSystemLoader(folder), *loaders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["normal"] = lambda text: " ".join(text.split())
    return found


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
