"""From models, texts and logs to a folder with compare.html, and a PNG and CSV of every figure."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from megatron_remit.analysis.curves import accuracy_figure, curves_figure, read_accuracies, read_run
from megatron_remit.analysis.figures import Drawn, kl_figure, logp_figure, table
from megatron_remit.analysis.heatmap import Heatmap, TokenMargin, csv, draw, token_margins
from megatron_remit.analysis.inputs import Texts, check_name, check_tokenizers, named_folders, named_pairs, read_texts
from megatron_remit.analysis.models import check_models
from megatron_remit.analysis.page import HeatmapSection, page
from megatron_remit.analysis.score import Scores, score_all
from megatron_remit.artifacts import bring_back, folder_for, unwritable, whole_set
from megatron_remit.errors import UserError

PAGE = "compare.html"
FIGURES = ("logprobs", "kl", "accuracy", "runs")
"""Names of the figures' files, but those of pairs of models."""


@dataclass(frozen=True)
class Request:
    """What to compare; the fields are the flags of tools/compare_models.py."""

    out: Path
    model: list[str] = field(default_factory=list)
    text: list[Path] = field(default_factory=list)
    json_key: str = "text"
    teacher: str | None = None
    heatmap: list[str] = field(default_factory=list)
    contrast: list[str] = field(default_factory=list)
    max_tokens: int = 1_000_000
    seq_length: int = 1024
    dtype: str = "auto"
    run: list[str] = field(default_factory=list)
    accuracy: list[str] = field(default_factory=list)


def compare(request: Request) -> Path:
    """Write the comparison; returns the path of compare.html.

    Raises:
        UserError: an input is missing, malformed, or does not fit the others (said before any model scores; nothing is
            written then); a model gives NaN; or --out cannot be written.
    """
    models = named_folders("--model", request.model)
    runs = {name: read_run(name, folder) for name, folder in named_folders("--run", request.run).items()}
    accuracies = read_accuracies(request.accuracy)
    if not (models or runs or accuracies):
        raise UserError("nothing to compare: give --model NAME=DIR with --text FILE, --run NAME=DIR or --accuracy FILE")
    if bool(models) != bool(request.text):
        raise UserError("--model and --text go together: models are compared on the texts of JSONL files")
    pairs = _pairs(request, models)
    _check_apart(request, pairs)
    texts = _texts(request, models) if models else None
    writing = partial(unwritable, f"--out {request.out}: cannot write there", "name a folder that can be written")
    with ExitStack() as folder:
        with writing():
            folder.enter_context(folder_for(request.out))
            bring_back(request.out / PAGE)
        files = _compared(request, models, texts, runs, accuracies, pairs)
        with writing():
            _write(request.out, files)
    print(f"wrote {request.out / PAGE} and {len(files) - 1} files of figures beside it")
    return request.out / PAGE


def _compared(
    request: Request, models: dict[str, Path], texts: Texts | None, runs: dict, accuracies: dict, pairs: list
) -> dict[str, bytes]:
    """The page's files by name, the page last."""
    scores = None
    if texts is not None:
        scores = score_all(models, texts, request.teacher, request.seq_length, request.dtype)
    figures = _figures(request, scores, runs, accuracies)
    files = {name: content for _, drawn in figures for name, content in drawn.files.items()}
    sections: list[HeatmapSection] = []
    if texts is not None and scores is not None:
        for (a, b), two_sided in pairs:
            one = Heatmap(a, b, two_sided, scores.logp[a], scores.logp[b])
            margins = token_margins(one.margin_N, texts.pieces)
            sections.append(HeatmapSection.of(one, texts, margins))
            files[f"{one.name}.png"], files[f"{one.name}.csv"] = draw(one, texts), csv(one, texts)
            files[f"tokens-{one.name}.csv"] = _margins_csv(margins)
    files[PAGE] = page(models, texts, scores, figures, sections).encode()
    return files


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Write the page, the last of ``files``, and its figures: all of them or none, and no page stands beside figures of
    another comparison."""
    with whole_set(*(out / name for name in files)) as temporaries:
        for temporary, content in zip(temporaries, files.values(), strict=True):
            temporary.write_bytes(content)


def _check_apart(request: Request, pairs: list[tuple[tuple[str, str], bool]]) -> None:
    """Raises UserError if the page or a figure would be written over an input file."""
    names = [*FIGURES]
    for (a, b), two_sided in pairs:
        stem = Heatmap.stem(a, b, two_sided)
        names += [stem, f"tokens-{stem}"]
    written = {PAGE, *(f"{name}.{kind}" for name in names for kind in ("png", "csv"))}
    inputs = [("--text", str(path), path) for path in request.text]
    inputs += [
        ("--accuracy", value, Path(value.partition("=")[2] if value.endswith(".json") else value))
        for value in request.accuracy
    ]
    for flag, value, path in inputs:
        if path.resolve().name in written and path.resolve().parent == request.out.resolve():
            raise UserError(f"{flag} {value}: --out {request.out} would overwrite it; choose another --out")


def _pairs(request: Request, models: dict[str, Path]) -> list[tuple[tuple[str, str], bool]]:
    """The pairs of --heatmap (False) and --contrast (True)."""
    pairs = [(pair, False) for pair in named_pairs("--heatmap", request.heatmap, models)]
    pairs += [(pair, True) for pair in named_pairs("--contrast", request.contrast, models)]
    if request.teacher is not None:
        check_name("--teacher", request.teacher, models)
        if len(models) == 1:
            raise UserError(f"--teacher {request.teacher}: give a second --model to compare with it")
    return pairs


def _texts(request: Request, models: dict[str, Path]) -> Texts:
    """The texts, which every model can take."""
    texts = read_texts(request.text, request.json_key, request.max_tokens, next(iter(models.values())))
    check_tokenizers(models, texts)
    largest = max(texts.start_token, int(texts.ids_N.max()))
    check_models(models, largest, request.teacher, request.seq_length)
    return texts


def _figures(request: Request, scores: Scores | None, runs: dict, accuracies: dict) -> list[tuple[str, Drawn]]:
    found = []
    if scores is not None:
        found.append(("How sure each model is of the text", logp_figure(scores.logp)))
        if request.teacher is not None and scores.kl:
            found.append((f"Distance to {request.teacher}", kl_figure(scores.kl, request.teacher)))
    if accuracies:
        found.append(("Accuracy against tokens and time", accuracy_figure(accuracies)))
    if runs:
        found.append(("Losses and gradient norms", curves_figure(runs)))
    return found


def _margins_csv(margins: list[TokenMargin]) -> bytes:
    rows: list[list[object]] = [["token", "times", "mean margin, nats", "standard error, nats"]]
    return table(rows + [[one.token, one.count, f"{one.mean:.6g}", f"{one.stderr:.6g}"] for one in margins])
