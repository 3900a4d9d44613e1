"""The cells of a comparison: gathered into one compact file that is committed, and read from it.

A cell is one trained model of one study: RUN_DIR/eval/<name>.json, with the nats of the solution of each held-out
problem at each point on the way. ``gather`` keeps the means of groups of about ten problems of one skill, which are
drawn together when the intervals resample the problems: groups of problems that were drawn alike are drawn alike too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from intervals import Runs

from megatron_remit.analysis.page import now
from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError
from megatron_remit.versions import machine, versions

FORMAT = 1
GROUP = 10
GROUPS = "groups of ten problems"
KEYS = {"study": str, "arm": str, "base": int, "order": str, "errors": float, "size": str, "stage": str}
SCALARS = ("tokens", "seconds", "p_true", "p_slip", "kl_reference")
MAIN = ("two_step", "three_step")


@dataclass(frozen=True)
class Cells:
    """All cells of a comparison, and what they come from."""

    cells: list[dict[str, Any]]
    source: dict[str, Any]
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage of the comparison took, by its name (KIND.ARM.WORLD.ORDER)."""

    def where(self, **wanted: Any) -> list[dict[str, Any]]:
        """The cells that have all of these values."""
        return [cell for cell in self.cells if all(cell[key] == value for key, value in wanted.items())]

    def values(self, key: str, **wanted: Any) -> list[Any]:
        """The values of a key among the cells that have all of ``wanted``, without repetition, sorted."""
        return sorted({cell[key] for cell in self.where(**wanted)})

    def runs(self, measure: str, skills: tuple[str, ...] | None = None, **wanted: Any) -> Runs:
        """(base, order) -> the measure at the last point. ``nll`` and ``right``: one value per group of problems, of
        ``skills`` or of all; the other measures: one value."""
        found = {}
        for cell in self.where(**wanted):
            value = at_point(cell["points"][-1], measure, skills)
            if value is not None:
                found[cell["base"], cell["order"]] = value
        return found

    def curves(self, measure: str, skills: tuple[str, ...] | None = None, **wanted: Any) -> Runs:
        """(base, order) -> the measure at every point, [points, groups]; points that lack it are left out."""
        found = {}
        for cell in self.where(**wanted):
            values = [at_point(point, measure, skills) for point in cell["points"]]
            if all(value is not None for value in values):
                found[cell["base"], cell["order"]] = np.stack([value for value in values if value is not None])
        return found

    def along(self, axis: str, **wanted: Any) -> np.ndarray:
        """``tokens`` or ``seconds`` at every point, the median over the runs [points]: one run that was stopped for a
        while, or had a busy machine, does not move it."""
        return np.median([[point[axis] for point in cell["points"]] for cell in self.where(**wanted)], axis=0)

    def skills(self) -> list[str]:
        """The skills that were measured, the two and three steps first."""
        found = {skill for cell in self.cells for skill in cell["points"][-1].get("nll", {})}
        return [skill for skill in MAIN if skill in found] + sorted(found - set(MAIN))


def at_point(point: Mapping[str, Any], measure: str, skills: tuple[str, ...] | None) -> np.ndarray | None:
    """One measure at one point; None where the point lacks it."""
    if measure in SCALARS:
        return np.array([point[measure]]) if point.get(measure) is not None else None
    found = point.get(measure, {})
    names = sorted(found) if skills is None else [skill for skill in skills if skill in found]
    return np.concatenate([found[name] for name in names]).astype(float) if names else None


def gather(run_dir: Path, out: Path, commits: str = "", add: bool = False) -> Path:
    """Write all cells of a run folder into one file; files of other shapes in RUN_DIR/eval are not cells. ``commits``
    says at which the runs were made. ``add`` keeps the cells that are in the file already and not in the run folder,
    with the sources that they have: bases that were trained elsewhere; and the times of their stages.

    Raises UserError where there is no cell, one that is not as described, or with ``add`` one that the file has with
    other numbers.
    """
    cells = read_cells(run_dir)
    if not cells:
        raise UserError(f"{run_dir / 'eval'}: no cell of a comparison there; run examples/compare_tiny.sh first")
    kinds = run_dir / "token_kinds.json"
    source = {"gathered": now(), "versions": versions(), "machine": machine(), "format": FORMAT}
    source["commits"] = commits
    source["token_kinds"] = _json(kinds)["kinds"] if kinds.is_file() else None
    stages = {path.name: _seconds(path) for path in sorted((run_dir / "done").glob("*"))}
    if add:
        old = load(out)
        cells, stages = _added(old, cells, source, out), old.stages | stages
    lines = ",\n".join(json.dumps(cell, separators=(",", ":"), allow_nan=False) for cell in cells)
    head = f'"source":{json.dumps(source)},\n"stages":{json.dumps(stages, sort_keys=True)}'
    write_whole(out, f'{{{head},\n"cells":[\n{lines}\n]}}\n')
    return out


def _added(old: Cells, cells: list[dict[str, Any]], source: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """The old cells and the new ones; ``source`` gets those of the old as "earlier", and their kinds of tokens where it
    has none."""
    there = {_key(cell): cell for cell in old.cells}
    for cell in cells:
        before = there.setdefault(_key(cell), cell)
        if before != cell:
            raise UserError(
                f"{out}: has {', '.join(f'{key} {cell[key]}' for key in KEYS)} with other numbers; add runs of other "
                "bases or orders (--bases, --orders), or gather without --add into a new file"
            )
    last = {key: value for key, value in old.source.items() if key not in ("earlier", "token_kinds", "format")}
    made = [*old.source.get("earlier", []), last]
    # Those gathered before from the same commits on the same machine are among the new ones.
    source["earlier"] = [one for one in made if any(one[key] != source[key] for key in ("commits", "machine"))]
    source["token_kinds"] = source["token_kinds"] or old.source.get("token_kinds")
    return [there[key] for key in sorted(there)]


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[key] for key in KEYS)


def read_cells(run_dir: Path) -> list[dict[str, Any]]:
    """The cells of a run folder, compact. Raises UserError for one that is not as described."""
    found = [(path, _json(path)) for path in sorted((run_dir / "eval").glob("*.json"))]
    return [_compact(path, content) for path, content in found if isinstance(content, dict) and "study" in content]


def _seconds(path: Path) -> float:
    """What compare/schedule.py wrote at the end of a stage."""
    content = _json(path)
    try:
        return float(content["seconds"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: found {content!r}, expected the seconds of a stage; remove it and run compare_tiny.sh again"
        ) from None


def load(path: Path) -> Cells:
    """The cells of a file that ``gather`` wrote. Raises UserError for another file."""
    content = _json(path)
    found = content.get("source", {}).get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: format {found!r}; expected {FORMAT}: gather it again with --gather RUN_DIR")
    return Cells(content["cells"], content["source"], content.get("stages", {}))


def _compact(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    try:
        cell: dict[str, Any] = {key: kind(content[key]) for key, kind in KEYS.items()}
        cell["settings"] = content.get("settings", {})
        cell["points"] = [_point(point) for point in content["points"]]
        cell["tensorboard"] = {tag: _short(values) for tag, values in content.get("tensorboard", {}).items()}
        if not cell["points"]:
            raise ValueError("no point")
        return cell
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: {type(error).__name__}: {error}; expected a cell with {', '.join(KEYS)} and at least one point; "
            "remove it and run examples/compare_tiny.sh again"
        ) from None


def _point(point: dict[str, Any]) -> dict[str, Any]:
    short: dict[str, Any] = {name: point[name] for name in SCALARS if point.get(name) is not None}
    for measure in ("nll", "right"):
        if point.get(measure):
            short[measure] = {skill: _short(groups(np.array(one, float))) for skill, one in point[measure].items()}
    short["problems"] = {skill: len(one) for skill, one in point["nll"].items()}
    return short


def groups(value_P: np.ndarray) -> list[float]:
    """Means of groups of about ten problems."""
    if not np.isfinite(value_P).all():
        raise ValueError("a measure that is not a number")
    return [float(part.mean()) for part in np.array_split(value_P, max(1, len(value_P) // GROUP))]


def _short(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") if abs(value) < 1e4 else value for value in values]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; gather the cells with --gather RUN_DIR") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove it and run examples/compare_tiny.sh again") from None
