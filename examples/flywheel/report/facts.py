"""What does not depend on chance: the checks of a run, and the weight by kind of token, as its stages wrote them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from megatron_remit.errors import UserError


class Check(NamedTuple):
    """One comparison bit for bit."""

    claim: str
    equal: bool
    compared: str


def checks(run_dir: Path) -> list[Check]:
    """RUN_DIR/checks/*.json by name. Raises UserError for one that is not as docs/report.md describes it."""
    found = []
    for path in sorted((run_dir / "checks").glob("*.json")):
        content = _object(path)
        if not isinstance(content.get("equal"), bool) or not isinstance(content.get("claim"), str):
            raise UserError(
                f'{path}: expected {{"claim": text, "equal": true or false, "compared": text}}; run it again'
            )
        found.append(Check(content["claim"], content["equal"], str(content.get("compared", ""))))
    return found


def kinds(run_dir: Path) -> tuple[list[str], list[list[str]]]:
    """Head and rows of RUN_DIR/token_kinds.json, both empty where a run has none."""
    path = run_dir / "token_kinds.json"
    if not path.is_file():
        return [], []
    rows = _object(path).get("kinds")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "kind" in row for row in rows) or not rows:
        raise UserError(
            f'{path}: expected {{"kinds": [{{"kind": text, ...}}, ...]}}; remove it and run its stage again'
        )
    head = list(rows[0])
    return head, [[_text(row.get(name)) for name in head] for row in rows]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove it and run its stage again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected one JSON object; remove it and run its stage again")
    return content
