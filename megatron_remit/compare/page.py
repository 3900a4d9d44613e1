"""The HTML page of a comparison."""

from collections.abc import Iterable
from datetime import datetime
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from megatron_remit.compare.figures import Drawn
from megatron_remit.compare.heatmap import Heatmap, html, legend
from megatron_remit.compare.inputs import Texts
from megatron_remit.compare.score import Scores
from megatron_remit.compare.tokens import TokenMargin
from megatron_remit.report.results import machine, versions

SHOWN_MARGINS = 20


def page(models: dict[str, Path], texts: Texts | None, scores: Scores | None, sections: Iterable[str]) -> str:
    """One HTML document that loads nothing."""
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    size = f" · {len(texts.ids_N):,} tokens of {len(texts):,} texts" if texts is not None else ""
    return Template((resources.files("megatron_remit.compare") / "page.html").read_text(encoding="utf-8")).substitute(
        style=(resources.files("megatron_remit.report") / "page.css").read_text(encoding="utf-8"),
        meta=escape(when + size),
        models=_models(models, scores) if scores is not None else "",
        sections="\n".join(sections),
        versions=_table(("what", "version"), [(name, str(value)) for name, value in (versions() | machine()).items()]),
    )


def figure_section(title: str, drawn: Drawn) -> str:
    """A figure with its caption."""
    return _card(title, f'{drawn.svg}<p class="note">{escape(drawn.caption)}</p>')


def heatmap_section(heatmap: Heatmap, texts: Texts, margins: list[TokenMargin]) -> str:
    """The coloured texts, and the tokens with the largest margins."""
    title = f"{heatmap.a} against {heatmap.b}"
    note = (
        '<p class="note">Point at a token for both log-probabilities. The texts are the first of the file; none was '
        "picked by its result.</p>"
    )
    tables = _margins(f"Tokens that {heatmap.a} predicts better", margins[:SHOWN_MARGINS])
    if heatmap.two_sided:
        tables += _margins(f"Tokens that {heatmap.b} predicts better", margins[::-1][:SHOWN_MARGINS])
    body = f'<p class="legend">{legend(heatmap)}</p>{html(heatmap, texts)}{note}<div class="grid">{tables}</div>'
    return _card(title, body)


def _models(models: dict[str, Path], scores: Scores) -> str:
    head = ("model", "folder", "mean log p, nats/token")
    if scores.kl:
        head += ("mean KL to the teacher, nats/token",)
    rows = []
    for name, folder in models.items():
        row = [name, folder.name, f"{scores.logp[name].mean():.4f}"]
        if scores.kl:
            row.append(f"{scores.kl[name].mean():.4f}" if name in scores.kl else "teacher")
        rows.append(tuple(row))
    return _table(head, rows)


def _margins(title: str, margins: list[TokenMargin]) -> str:
    if not margins:
        return ""
    rows = [(one.token, f"{one.count:,}", f"{one.mean:+.3f} ± {one.stderr:.3f}") for one in margins]
    head = ("token", "times", "mean margin, nats ± standard error")
    return f"<div><h3>{escape(title)}</h3>{_table(head, rows)}</div>"


def _card(title: str, body: str) -> str:
    return f'<section class="card">\n<h2>{escape(title)}</h2>\n{body}\n</section>'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'
