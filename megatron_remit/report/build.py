"""From a run folder to report.html and results.json."""

import json
from pathlib import Path

from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError
from megatron_remit.report.load import load_run
from megatron_remit.report.page import page
from megatron_remit.report.results import results
from megatron_remit.report.score import score_texts, spread


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
    content = results(run, texts)
    html = page(run, texts, content)
    write_whole(run_dir / "results.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_whole(out, html)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB) and {run_dir / 'results.json'}")
    return out
