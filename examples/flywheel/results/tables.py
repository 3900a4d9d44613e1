"""The tables of the results page: every row is made from the cells, and every claim from an interval."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from intervals import Interval, Runs, difference, percent, positive_mean, reach, share, verdict

from results.arms import CONTROLS, MODELS, STAGES, in_order, named
from results.cells import MAIN, Cells

MISSING = "\N{EN DASH}"
WHAT_RL_ADDS = (("remit", "remit_sft"), ("remit_rl_errors", "remit_sft_errors"), ("remit", "remit_early"))
"""Arms whose references differ in RL alone."""
EQUAL_COMPUTE = (("remit", "ntp_equal_compute"), ("remit_before_rl", "ntp_equal_compute"))
"""Arms with a reference against NTP on as many more tokens as it costs."""
AGAINST_REMIT = tuple((arm, "remit") for arm in ("remit_eps01", "remit_eps04", "remit_no_clip", "contrast", "prift"))
"""Arms that change one part of ReMiT, against it."""
SECOND_ROUND = (("second_remit", "second_ntp"), ("second_remit", "remit"), ("second_ntp", "remit"))
"""Arms of the second round against one another and against ReMiT's first."""
BEFORE: dict[str, Any] = {"errors": 0.3, "size": "1M"}
"""The setting of a study that varies neither the share of errors nor the size."""
NTP = "ntp"
EACH = "its runs, %"
"""The column of the least and the greatest change of a run."""
TIMED = {
    "data": "corpora and tokenizer",
    "base": "a base past its jump",
    "references": "SFT and RL",
    "more_references": "SFT on errors, RL behind it, RL's tenth",
    "selected": "MiniPLM's selection",
    "methods": "an arm",
    "lasting": "SFT and RL behind an arm",
    "flywheel": "an arm of the second round",
    "errors": "an arm at another share of errors",
    "threads": "an arm on two threads",
    "again": "an arm in a new order",
    "size": "an arm of another size",
    "kinds": "weight by kind of token",
}
"""What the stages of a kind make."""


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(found: Interval, digits: int = 3, unit: str = "") -> str:
    """An estimate with its interval."""
    return f"{found.mean:.{digits}f}{unit} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def nats(runs: Runs, digits: int = 3) -> str:
    """Nats a solution of these runs with their interval."""
    return shown(positive_mean(runs), digits) if runs else MISSING


def solved(runs: Runs) -> str:
    """Problems solved in %, with their interval."""
    return shown(share(runs).through(lambda value: 100 * value), 1) if runs else MISSING


def arms_of(cells: Cells, **wanted: Any) -> list[str]:
    """The methods and controls of a study, in the order of the table."""
    return [arm for arm in in_order(set(cells.values("arm", **wanted))) if arm not in MODELS]


def change(cells: Cells, arm: str, than: str, skills: tuple[str, ...] | None = MAIN, **wanted: Any) -> Interval | None:
    """By how many percent the solutions of ``arm`` cost more nats than those of ``than``; None without shared runs."""
    one, other = (cells.runs("nll", skills, arm=name, **wanted) for name in (arm, than))
    return percent(one, other) if set(one) & set(other) else None


def of_each_run(cells: Cells, arm: str, than: str, **wanted: Any) -> list[float]:
    """The change of :func:`change` in each run that both have, in percent."""
    one, other = (cells.runs("nll", MAIN, arm=name, **wanted) for name in (arm, than))
    return [100 * (one[key].mean() / other[key].mean() - 1) for key in one if key in other]


def spread(percents: list[float]) -> str:
    """The least and the greatest: how alike runs are where few bases make an interval wide."""
    return f"{min(percents):+.0f} to {max(percents):+.0f}"


def methods(cells: Cells, **wanted: Any) -> str:
    """Nats a solution and accuracy of each arm at its end, and how far it is from NTP."""
    head = ["arm", "runs", "two-step, nats", "three-step, nats", "all skills, nats", "right, %", "against NTP", EACH]
    rows = []
    for arm in arms_of(cells, **wanted):
        per_skill = [cells.runs("nll", skills, arm=arm, **wanted) for skills in (MAIN[:1], MAIN[1:], None)]
        right = cells.runs("right", MAIN, arm=arm, **wanted)
        found = None if arm == NTP else change(cells, arm, NTP, **wanted)
        row = [named(arm).name, str(len(per_skill[2]))]
        row += [*map(nats, per_skill), solved(right)]
        told = [verdict(found, "NTP"), spread(of_each_run(cells, arm, NTP, **wanted))] if found else [MISSING] * 2
        rows.append([*row, *told])
    return markdown(head, rows)


def against_controls(cells: Cells, **wanted: Any) -> str:
    """Every arm against the two controls, on the two- and three-step problems."""
    arms = arms_of(cells, **wanted)
    rows = []
    for arm in (arm for arm in arms if arm not in (NTP, *CONTROLS)):
        found = [change(cells, arm, control, **wanted) for control in CONTROLS]
        words = [verdict(one, "the control") if one else MISSING for one in found]
        rows.append([named(arm).name, *words])
    return markdown(["arm", *(f"against {named(control).name}" for control in CONTROLS)], rows)


def pairs(cells: Cells, chosen: Iterable[tuple[str, str]], **wanted: Any) -> str:
    """Arms against one another; empty without them."""
    rows = []
    for arm, than in chosen:
        found = change(cells, arm, than, **wanted)
        if found:
            told = [verdict(found, "the other"), spread(of_each_run(cells, arm, than, **wanted))]
            rows.append([named(arm).name, named(than).name, *told])
    return markdown(["arm", "the other", "on two- and three-step problems", EACH], rows) if rows else ""


def per_skill(cells: Cells, **wanted: Any) -> str:
    """Nats of NTP in each skill, and the change of each arm against it in percent."""
    skills = [skill for skill in cells.skills() if cells.runs("nll", (skill,), arm=NTP, **wanted)]
    rows = [["NTP, nats", *(nats(cells.runs("nll", (skill,), arm=NTP, **wanted), 2) for skill in skills)]]
    for arm in (arm for arm in arms_of(cells, **wanted) if arm != NTP):
        found = [change(cells, arm, NTP, (skill,), **wanted) for skill in skills]
        ends = [f"{one.mean:+.0f} ({one.low:+.0f} to {one.high:+.0f})" if one else MISSING for one in found]
        rows.append([f"{named(arm).name}, %", *ends])
    return markdown(["arm", *(skill.replace("_", "-") for skill in skills)], rows)


def models(cells: Cells) -> str:
    """The models that arms start from and their references."""
    rows = []
    for arm in MODELS:
        wanted = {"study": "models", "arm": arm, **BEFORE}
        runs = [cells.runs("nll", skills, **wanted) for skills in (MAIN[:1], MAIN[1:])]
        if runs[0]:
            rows.append([named(arm).name, str(len(runs[0])), *map(nats, runs), _rewarded(cells, **wanted)])
    head = ["model", "bases", "two-step, nats", "three-step, nats", "reward, first to last quarter of RL"]
    return markdown(head, rows) if rows else ""


def _rewarded(cells: Cells, **wanted: Any) -> str:
    """The mean reward of a model's RL at its beginning and at its end, means over bases."""
    told = [cell["settings"] for cell in cells.where(**wanted) if "reward" in cell["settings"]]
    ends = [float(np.mean([one[name] for one in told])) for name in ("reward_before", "reward")] if told else []
    return " to ".join(f"{end:.2f}" for end in ends) or MISSING


def convergence(cells: Cells, **wanted: Any) -> str:
    """Tokens and seconds at which each arm comes down to the end of NTP."""
    rows = []
    for arm in arms_of(cells, **wanted):
        rows.append([named(arm).name, *(reached(cells, arm, axis, **wanted) for axis in ("tokens", "seconds"))])
    return markdown(["arm", "tokens to NTP's end", "seconds of training to NTP's end"], rows)


def reached(cells: Cells, arm: str, axis: str, **wanted: Any) -> str:
    """Where an arm reaches NTP's end, in words with the interval."""
    curves, ntp = (cells.curves("nll", MAIN, arm=name, **wanted) for name in (arm, NTP))
    lengths = {len(curve) for curve in [*curves.values(), *ntp.values()]}
    if not set(curves) & set(ntp) or len(lengths) != 1:
        return MISSING
    x = cells.along(axis, arm=arm, **wanted)
    found = reach(curves, ntp, x)
    if not np.isfinite(found.mean):
        return "not reached"
    if found.high <= x[0] * (1 + 1e-9):
        return f"at most {x[0]:,.0f}, where it was measured first"
    high = f"{found.high:,.0f}" if np.isfinite(found.high) else "not reached"
    return f"{found.mean:,.0f} ({max(0, found.low):,.0f} to {high})"


def lasting(cells: Cells) -> str:
    """NTP and the change against it after each stage."""
    rows = []
    for stage in [stage for stage in STAGES if cells.where(study="lasting", stage=stage)]:
        wanted = {"study": "lasting", "stage": stage, **BEFORE}
        for arm in arms_of(cells, **wanted):
            found = change(cells, arm, NTP, **wanted) if arm != NTP else None
            own = cells.runs("nll", MAIN, arm=arm, **wanted)
            words = verdict(found, "NTP") if found else MISSING
            rows.append([STAGES[stage], named(arm).name, str(len(own)), nats(own), words])
    return markdown(["stage", "arm", "runs", "nats a solution", "against NTP"], rows)


def both_rounds(cells: Cells) -> Cells:
    """The runs of the second round with NTP and ReMiT of the first, all as cells of the flywheel's study."""
    first = [cell for arm in (NTP, "remit") for cell in cells.where(study="methods", arm=arm, stage="mid", **BEFORE)]
    return Cells([cell | {"study": "flywheel"} for cell in first] + cells.where(study="flywheel"), cells.source)


def parameters(size: str) -> float:
    """ "5M" as a number."""
    return float(size.rstrip("M")) * 1e6


def varied(
    cells: Cells, study: str, key: str, name: Callable[[Any], str], number: Callable[[Any], float] = float
) -> str:
    """The change against NTP at each value of what a study varies, in the order of their numbers."""
    rows = []
    for value in sorted(cells.values(key, study=study), key=number):
        for arm in arms_of(cells, study=study, **{key: value}):
            wanted = {"study": study, key: value}
            own = cells.runs("nll", MAIN, arm=arm, **wanted)
            found = change(cells, arm, NTP, **wanted) if arm != NTP else None
            words = verdict(found, "NTP") if found else MISSING
            rows.append([name(value), named(arm).name, str(len(own)), nats(own), words])
    return markdown([key, "arm", "runs", "nats a solution", "against NTP"], rows)


def threads(cells: Cells) -> str:
    """The same base and order with one thread and with two: the verdict of each, and the difference of each arm."""
    rows = []
    for arm in arms_of(cells, study="threads"):
        one, two = (cells.runs("nll", MAIN, study=study, arm=arm, **BEFORE) for study in ("methods", "threads"))
        shared = {key: one[key] for key in one if key in two}
        if not shared:
            continue
        pairs = [change(cells, arm, NTP, study="threads", **BEFORE) if arm != NTP else None]
        ntp = {key: cells.runs("nll", MAIN, study="methods", arm=NTP, **BEFORE).get(key) for key in shared}
        known = {key: value for key, value in ntp.items() if value is not None}
        with_one = percent(shared, known) if arm != NTP and known else None
        gap = difference(two, shared)
        words = [verdict(found, "NTP") if found else MISSING for found in (with_one, *pairs)]
        rows.append([named(arm).name, str(len(shared)), shown(gap), *words])
    return markdown(["arm", "runs", "two threads less one, nats", "one thread", "two threads"], rows)


def again(cells: Cells) -> str:
    """Runs in an order of the data that no interval was made from, and whether they are inside: NTP in nats, the others
    as their change against it."""
    rows = []
    for arm in arms_of(cells, study="again", **BEFORE):
        new, whole = (_end(cells, arm, study=study, **BEFORE) for study in ("again", "methods"))
        if new is None or whole is None:
            continue
        unit, digits = ("", 3) if arm == NTP else (" %", 1)
        ends = f"{whole.low:+.{digits}f} to {whole.high:+.{digits}f}{unit}"
        inside = "yes" if whole.low <= new.mean <= whole.high else "no"
        rows.append([named(arm).name, str(new.orders), f"{new.mean:+.{digits}f}{unit}", ends, inside])
    return markdown(["arm", "new runs", "their mean", "interval of the table", "inside"], rows)


def _end(cells: Cells, arm: str, **wanted: Any) -> Interval | None:
    """Nats a solution of NTP, or the change of another arm against it in percent; None without such runs."""
    if arm != NTP:
        return change(cells, arm, NTP, **wanted)
    runs = cells.runs("nll", MAIN, arm=arm, **wanted)
    return positive_mean(runs) if runs else None


def hours(cells: Cells) -> str:
    """How long the stages took, by kind and by the size of the models, and all of them."""
    found: dict[tuple[str, str], list[float]] = {}
    for name, seconds in cells.stages.items():
        size = next(part for part in name.split(".") if re.fullmatch(r"\d+M", part))
        found.setdefault((name.split(".")[0], size), []).append(seconds / 60)
    rows = []
    for kind, size in sorted(found, key=lambda key: ([*TIMED, key[0]].index(key[0]), parameters(key[1]))):
        minutes = found[kind, size]
        each = f"{np.median(minutes):.1f} ({min(minutes):.1f} to {max(minutes):.1f})"
        rows.append([TIMED.get(kind, kind), size, str(len(minutes)), each, f"{sum(minutes) / 60:.1f}"])
    rows.append(["all", "", str(len(cells.stages)), "", f"{sum(cells.stages.values()) / 3600:.1f}"])
    return markdown(["stage", "size", "number", "minutes each, median (range)", "hours"], rows)


def kinds(found: list[dict[str, Any]]) -> str:
    """Weight by kind of token; the kinds are those that the generator of the world wrote."""
    names = [name for name in found[0] if name != "kind"]
    rows = [[str(one["kind"]), *(_cell(one.get(name)) for name in names)] for one in found]
    return markdown(["kind", *names], rows)


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
