"""From a run folder to report.html and results.json: every figure of the report, with what gave them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError
from megatron_remit.versions import machine, versions
from report.effect import Effect
from report.figures import clip_threshold
from report.heldout import ScoredText, score_texts, spread
from report.load import RunFolder, load_run
from report.page import page


def build_report(run_dir: Path, out: Path | None = None, max_texts: int = 600) -> Path:
    """Write the report to ``out`` (default RUN_DIR/report.html) and RUN_DIR/results.json; returns the HTML path.

    Args:
        run_dir: the folder of a run, as docs/report.md describes it.
        out: the HTML file.
        max_texts: at most so many held-out texts are scored with the base and the RL model.

    Raises UserError for a missing or malformed input, before anything is written.
    """
    if max_texts < 1:
        raise UserError(f"--max-texts {max_texts}: expected at least 1 text to score")
    out = run_dir / "report.html" if out is None else out
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist; create it or choose another")
    run = load_run(run_dir)
    hf = run_dir / "hf"
    rows = spread(run.heldout, max_texts)
    texts = score_texts(rows, hf / "base", hf / "rl_reference", run.epsilon, run.sequence_length)
    if not texts:
        raise UserError(f"{run_dir / 'data' / 'heldout.jsonl'}: every text is empty; expected held-out problems")
    effect = Effect.of(run_dir)
    content = results(run, texts, effect)
    html = page(run, texts, content, effect)
    write_whole(run_dir / "results.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_whole(out, html)
    print(effect.terminal())
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB) and {run_dir / 'results.json'}")
    print(f"open file://{out.resolve()}")
    return out


def results(run: RunFolder, texts: list[ScoredText], effect: Effect) -> dict[str, Any]:
    """The content of results.json. Deltas are nats, times seconds."""
    return {
        "arms": effect.figures(),
        "verdict": effect.conclusion(),
        "verdicts": effect.verdicts(),
        "basis": effect.basis(),
        "delta": _delta(run, texts),
        "timings_seconds": run.timings,
        "settings": run.settings,
        "versions": versions(),
        "machine": machine(),
    }


def _delta(run: RunFolder, texts: list[ScoredText]) -> dict[str, Any]:
    delta = np.concatenate([text.margin for text in texts])
    centered = np.concatenate([text.centered for text in texts])
    quantiles = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    content: dict[str, Any] = {
        "texts": len(texts),
        "tokens": len(delta),
        "mean": float(delta.mean()),
        "std": float(delta.std()),
        "quantiles": {str(q): float(value) for q, value in zip(quantiles, np.quantile(delta, quantiles), strict=True)},
    }
    if run.epsilon is not None:
        threshold = clip_threshold(run.epsilon)
        content["clip_threshold"] = threshold if np.isfinite(threshold) else None
        content["clipped_low"] = float(np.mean(centered < -threshold))
        content["clipped_high"] = float(np.mean(centered > threshold))
    return content
