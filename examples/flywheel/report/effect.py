"""The effect as points of several runs: what the cells of a demo say, as a table, a figure and sentences.

The cells are those of a comparison (results/cells.py): RUN_DIR/eval/<name>.json with "study". All sentences follow from
the intervals; the arms are compared on the two- and three-step problems, in nats a solution.
"""

from pathlib import Path
from typing import Any, NamedTuple

from intervals import Interval, positive_mean, share, verdict
from markupsafe import Markup
from results.arms import named
from results.cells import GROUPS, MAIN, Cells, read_cells
from results.tables import MISSING, NTP, arms_of, change, nats, of_each_run, solved

from megatron_remit.errors import UserError
from report.drawing import figure


class Row(NamedTuple):
    """An arm in the table of effects; all values are texts."""

    arm: str
    name: str
    runs: str
    nats: str
    right: str
    against: str


class Effect:
    """The cells of a run folder at the end of mid-training."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.wanted = {"study": "methods", "stage": "mid"}
        self.arms = arms_of(cells, **self.wanted)

    @classmethod
    def of(cls, run_dir: Path) -> "Effect":
        """The effect in a run folder. Raises UserError where it has no cell of NTP."""
        effect = cls(Cells(read_cells(run_dir), {}))
        if NTP not in effect.arms:
            raise UserError(
                f"{run_dir / 'eval'}: no cell of NTP after mid-training; run examples/flywheel_tiny.sh again"
            )
        return effect

    def change(self, arm: str, than: str = NTP) -> Interval | None:
        """Nats a solution of ``arm`` against ``than``, %."""
        return change(self.cells, arm, than, **self.wanted) if arm != than else None

    def rows(self) -> list[Row]:
        """The table: one row per arm."""
        rows = []
        for arm in self.arms:
            nll, right = (self.cells.runs(name, MAIN, arm=arm, **self.wanted) for name in ("nll", "right"))
            found = self.change(arm)
            words = verdict(found, "NTP") if found else MISSING
            rows.append(Row(arm, named(arm).name, str(len(nll)), nats(nll), solved(right), words))
        return rows

    def figures(self) -> dict[str, dict[str, Any]]:
        """What results.json holds of each arm: nats a solution, the share right, and the change against NTP in %."""
        found: dict[str, dict[str, Any]] = {}
        for arm in self.arms:
            nll, right = (self.cells.runs(name, MAIN, arm=arm, **self.wanted) for name in ("nll", "right"))
            intervals = {
                "nats_per_solution": positive_mean(nll) if nll else None,
                "share_right": share(right) if right else None,
                "percent_against_ntp": self.change(arm),
            }
            found[arm] = {"name": named(arm).name, "runs": len(nll)} | {
                name: None if one is None else {"mean": one.mean, "low": one.low, "high": one.high}
                for name, one in intervals.items()
            }
        return found

    def verdicts(self) -> list[str]:
        """What may be said: every other arm against NTP, and ReMiT against each control."""
        told = []
        for arm in self.arms:
            found = self.change(arm)
            if found:
                name = named(arm).name
                told.append(f"{name[0].upper()}{name[1:]} is {verdict(found, 'NTP')}.")
        for control in ("remit_before_rl", "remit_permuted"):
            if control in self.arms and "remit" in self.arms:
                found = self.change("remit", control)
                if found:
                    told.append(f"ReMiT is {verdict(found, named(control).name)}.")
        return told

    def conclusion(self) -> str:
        """The verdict in words without figures, so that runs of several seeds, threads and processors can be held
        against one another; empty without the arms that it is about."""
        over_ntp, over_control = (self._remit_below(than) for than in (NTP, "remit_before_rl"))
        if over_ntp is None or over_control is None:
            return ""
        if over_ntp and over_control:
            return "Verdict: ReMiT gains over NTP, and over the control, whose reference saw neither SFT nor RL."
        if over_ntp:
            return "Verdict: ReMiT gains over NTP; more than with a reference that saw neither SFT nor RL is not shown."
        return "Verdict: no gain of ReMiT over NTP is shown."

    def _remit_below(self, than: str) -> bool | None:
        found = self.change("remit", than)
        return None if found is None else bool(found.high < 0)

    def basis(self) -> str:
        """What the sentences rest on."""
        found = next((one for one in map(self.change, self.arms) if one), None)
        return f"Nats a solution; 95 % intervals from {found.basis(GROUPS)}." if found else ""

    def drawn(self) -> Markup:
        """Each run as a dot, the mean and its interval as a bar."""
        with figure("effect", 9.6, 1.1 + 0.42 * len(self.arms)) as (ax, svg):
            for place, arm in enumerate(self.arms):
                found, style = self.change(arm), named(arm)
                each = of_each_run(self.cells, arm, NTP, **self.wanted)
                ax.plot(each, [place + 0.2] * len(each), "o", color=style.colour, markersize=4.5, alpha=0.6)
                if found:
                    ax.plot([found.low, found.high], [place, place], color=style.colour, linewidth=2.6)
                    ax.plot(found.mean, place, style.marker, color=style.colour, markersize=7)
            ax.axvline(0, color="#222222", linewidth=1)
            ax.set_yticks(range(len(self.arms)), [named(arm).name for arm in self.arms])
            ax.set_ylim(len(self.arms) - 0.4, -0.6)
            ax.grid(axis="y", visible=False)
            ax.set_xlabel("nats a solution against NTP on the same base and order, %")
        return svg[0]

    def terminal(self) -> str:
        """The table and the verdict for a terminal."""
        rows = [("arm", "runs", "nats a solution", "right, %", "against NTP"), *(row[1:] for row in self.rows())]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", *self.verdicts(), self.basis(), self.conclusion()])
