"""docs/results-tiny.md: the message first, then the table, then how sure; a section whose study has no cell says so."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intervals import verdict

from results import figures, tables
from results.arms import CONTROLS, named
from results.cells import GROUPS, MAIN, Cells
from results.tables import BEFORE, NTP

NOT_RUN = "This study has not been run yet."
METHODS: dict[str, Any] = {"study": "methods", "stage": "mid", **BEFORE}
APPENDIX = Path(__file__).with_name("appendix.md")


class Page:
    """The page and its figures, which stand next to it with its name in front of theirs."""

    def __init__(self, cells: Cells, out: Path) -> None:
        self.cells, self.out = cells, out

    def text(self) -> str:
        """The page as Markdown; its figures are written on the way."""
        sections = [self._methods(), *(section() for section in self._others()), how_sure(self.cells)]
        head = f"# All methods on the tiny flywheel\n\n{self._message()}\n\n{MEASURE}"
        made = "\n\n".join([head, *sections])
        made = "\n\n".join(wrapped(block) for block in made.split("\n\n"))
        return f"{made}\n\n{APPENDIX.read_text(encoding='utf-8').strip()}\n"

    def _others(self) -> list[Callable[[], str]]:
        return [
            self._convergence, self._lasting, self._flywheel, self._kl, self._gradients, self._errors, self._sizes,
            self._threads, self._again, self._kinds, self._hours,
        ]  # fmt: skip

    def _message(self) -> str:
        found = {arm: tables.change(self.cells, arm, NTP, **METHODS) for arm in ("remit", *CONTROLS)}
        told = [f"{named(arm).name} is {verdict(one, 'NTP')}" for arm, one in found.items() if one]
        if not told:
            return NOT_RUN
        basis = next(one.basis(GROUPS) for one in found.values() if one)
        return f"**In nats a solution, {'; '.join(told)}** ({basis}).{self._only_the_reward()}"

    def _only_the_reward(self) -> str:
        """What RL brings where SFT saw the errors of the corpus."""
        found = tables.change(self.cells, "remit_rl_errors", "remit_sft_errors", **METHODS)
        if not found:
            return ""
        words = verdict(found, "ReMiT with the SFT model that RL began with")
        return f" **Where only RL's reward knows what is right, ReMiT is {words}** ({found.basis(GROUPS)})."

    def _figure(self, name: str, caption: str, draw: Callable[..., None], *arguments: Any, **wanted: Any) -> str:
        path = self.out.with_name(f"{self.out.stem}-{name}.png")
        draw(self.cells, path, *arguments, **wanted)
        return f"![{caption}]({path.name})"

    def _methods(self) -> str:
        if not self.cells.where(**METHODS):
            return f"## Methods side by side\n\n{NOT_RUN}"
        parts = [
            "## Methods side by side",
            self._figure("methods", "change of each arm against NTP", figures.against_ntp, **METHODS),
            tables.methods(self.cells, **METHODS),
            "Against the controls, which have ReMiT's weights without what RL taught the reference:",
            tables.against_controls(self.cells, **METHODS),
            *self._two_by_two(),
            "Each skill, change against NTP in % of nats a solution:",
            tables.per_skill(self.cells, **METHODS),
        ]
        return "\n\n".join([*parts, *self._models()])

    def _models(self) -> list[str]:
        table = tables.models(self.cells)
        if not table:
            return []
        told = []
        for rl, sft in (("rl_reference", "sft"), ("rl_errors", "sft_errors")):
            found = tables.change(self.cells, rl, sft, study="models", **BEFORE)
            if found:
                name = "The RL reference" if rl == "rl_reference" else named(rl).name
                told.append(f"{name} is {verdict(found, 'the SFT model that RL began with')}.")
        parts = ["The models that the arms start from, and their references:", table]
        return [*parts, " ".join(told)] if told else parts

    def _two_by_two(self) -> list[str]:
        told = {
            "At the same compute, as a token costs 8 operations with a reference, else 6:": tables.EQUAL_COMPUTE,
            "References that differ in RL alone:": tables.WHAT_RL_ADDS,
            "Another clip, or another gap, in ReMiT's place:": tables.AGAINST_REMIT,
        }
        found = {words: tables.pairs(self.cells, chosen, **METHODS) for words, chosen in told.items()}
        return [part for words, table in found.items() if table for part in (words, table)]

    def _convergence(self) -> str:
        if not self.cells.where(**METHODS):
            return f"## Tokens and seconds to NTP's end\n\n{NOT_RUN}"
        picture = self._figure("curves", "nats a solution against tokens and seconds", figures.curves, **METHODS)
        note = (
            "Lines are means over runs; the figures with lines show seven arms, the tables all. Seconds are medians "
            "over runs that shared the machine with one another and with other work."
        )
        return (
            f"## Tokens and seconds to NTP's end\n\n{picture}\n\n{note}\n\n{tables.convergence(self.cells, **METHODS)}"
        )

    def _lasting(self) -> str:
        title = "## What lasts through SFT and GRPO"
        if not self.cells.where(study="lasting"):
            return f"{title}\n\n{NOT_RUN}"
        picture = self._figure("lasting", "change against NTP after each stage", figures.stages)
        return f"{title}\n\n{picture}\n\n{tables.lasting(self.cells)}"

    def _flywheel(self) -> str:
        title, wanted = "## The flywheel: a second round", METHODS | {"study": "flywheel"}
        if not self.cells.where(**wanted):
            return f"{title}\n\n{NOT_RUN}"
        both = tables.both_rounds(self.cells)
        words = "change of both rounds against NTP"
        picture = Page(both, self.out)._figure("flywheel", words, figures.against_ntp, **wanted)
        found = tables.methods(both, **wanted), tables.pairs(both, tables.SECOND_ROUND, **wanted)
        return "\n\n".join([title, FLYWHEEL, picture, *found])

    def _kl(self) -> str:
        if not any("kl_reference" in point for cell in self.cells.where(**METHODS) for point in cell["points"]):
            return f"## KL to the reference\n\n{NOT_RUN}"
        picture = self._figure("kl", "KL to the reference", figures.kl, **METHODS)
        return f"## KL to the reference\n\n{KL}\n\n{picture}"

    def _gradients(self) -> str:
        title, tag = "## Gradient norms", "grad-norm"
        if not any(tag in cell["tensorboard"] for cell in self.cells.where(**METHODS)):
            return f"{title}\n\n{NOT_RUN}"
        words = "gradient norm before clipping"
        return f"{title}\n\n" + self._figure("gradients", words, figures.logged, tag, words, **METHODS)

    def _errors(self) -> str:
        title = "## Effect against the share of errors"
        if not self.cells.where(study="errors"):
            return f"{title}\n\n{NOT_RUN}"
        found = tables.change(self.cells, "remit", NTP, study="errors", errors=0.0)
        left = f"Without errors ReMiT is {verdict(found, 'NTP')}." if found else "Without errors: not run yet."
        picture = self._figure("errors", "effect and probabilities against the share of errors", figures.errors)
        return f"{title}\n\n{left}\n\n{picture}\n\n" + tables.varied(
            self.cells, "errors", "errors", lambda share: f"{100 * share:.0f} %"
        )

    def _sizes(self) -> str:
        if len(self.cells.values("size", study="size")) < 2:  # one is that of the methods
            return f"## Effect against size\n\n{NOT_RUN}"
        picture = self._figure("size", "effect against size", figures.sizes, tables.parameters)
        return f"## Effect against size\n\n{picture}\n\n" + tables.varied(
            self.cells, "size", "size", str, tables.parameters
        )

    def _threads(self) -> str:
        return "## One thread and two\n\n" + (
            tables.threads(self.cells) if self.cells.where(study="threads") else NOT_RUN
        )

    def _again(self) -> str:
        title = "## A tenth of the runs once more, in a new order of the data"
        return f"{title}\n\n" + (tables.again(self.cells) if self.cells.where(study="again") else NOT_RUN)

    def _kinds(self) -> str:
        found = self.cells.source.get("token_kinds")
        return "## Weight by kind of token, against the truth\n\n" + (tables.kinds(found) if found else NOT_RUN)

    def _hours(self) -> str:
        title = "## How long it takes"
        return f"{title}\n\n{HOURS}\n\n{tables.hours(self.cells)}" if self.cells.stages else f"{title}\n\n{NOT_RUN}"


def wrapped(block: str) -> str:
    """A paragraph in lines of at most 120 characters; tables, headings and pictures as they are."""
    if block.startswith(("|", "#", "![")):
        return block
    return textwrap.fill(block, 120, break_long_words=False, break_on_hyphens=False)


def how_sure(cells: Cells) -> str:
    """How the intervals come about, and what the page was made from."""
    problems = {skill: count for cell in cells.cells for skill, count in cell["points"][-1]["problems"].items()}
    main = sum(problems.get(skill, 0) for skill in MAIN)
    made = " ".join(f"{_made(source)}." for source in (*cells.source.get("earlier", []), cells.source))
    return (
        f"{SURE}\n\n## Conditions\n\n{len(cells.cells)} cells, {sum(problems.values()):,} held-out problems, {main:,} "
        f"of them in two or three steps; the same for all arms. {_behind(cells)} `bash examples/compare_tiny.sh`. "
        f"{made}"
    )


def _behind(cells: Cells) -> str:
    """Where the problems stand in a text, which has not always been the same."""
    told = "Problems stand behind an end of text, as most documents of the corpora do"
    bases = sorted({cell["base"] for cell in cells.cells if "behind" not in cell["settings"]})
    if not bases:
        return f"{told}."
    return (
        f"{told}; those of bases {', '.join(map(str, bases))} stood behind nothing, which costs a small model "
        "more nats, as few in the corpora do. Arms are compared on the same base only."
    )


def _made(source: dict[str, Any]) -> str:
    """When, from which commits and where cells were made."""
    commits = f", commits {source['commits']}" if source.get("commits") else ""
    things = ", ".join(f"{name} {value}" for name, value in (source["versions"] | source["machine"]).items() if value)
    return f"Gathered {source['gathered']}{commits}: {things}"


MEASURE = """The first measure is the NLL of the solution and its end, in nats a solution, on held-out problems; the
comparisons with NTP and the controls are over the two- and three-step problems. The second is greedy accuracy. Values
in brackets are 95 % intervals; "its runs" are the least and the greatest change among the runs of an arm. An arm with
fewer runs than others is not finished, and compared on what it shares; the interval of a single run holds the variation
of the problems, and neither that of bases nor of orders."""

KL = """KL(reference || model) of the tokens of the right solutions at the end of mid-training, all skills; the
reference is the RL model of the same base."""

FLYWHEEL = """The second round starts from the same base on the same tokens, and its reference is the RL model that SFT
and GRPO made of the first round's NTP or of its ReMiT."""

HOURS = """By the clock, each stage with the evaluations in it. A stage computes on one core (two threads: on two), and
as many run at once as `--jobs` says, so the hours are about those of one core. The machine had other work at times."""

SURE = """## How sure

Intervals resample the bases, with the data orders of each, and the problems, which all arms share; comparisons pair
base, order and problem. Each variance is corrected for the number of bases, and the interval is Student's
(`examples/flywheel/intervals.py`); that of nats and of their changes is symmetric in the logarithm. On simulated runs
of 3 bases x 3 orders x 100 problems it held the truth in 96 % of 1000 draws where the problems vary most, in 93 % where
the bases do and in 92 % where the orders do. The percentiles of the plain hierarchical bootstrap held it in 95, 79 and
94 %. The intervals are not corrected for the number of rows: of 20 arms without effect, one is expected to look
distinguishable."""
