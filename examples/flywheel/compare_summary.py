"""Table, curves and what may be concluded from the runs of compare_tiny.sh: a Markdown page and a PNG next to it."""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib
from evaluate import TASKS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_remit.analysis.figures import STYLE, png
from megatron_remit.analysis.scalars import read_scalars
from megatron_remit.artifacts import write_whole
from megatron_remit.versions import machine, versions

# name -> what it is, colour (Okabe and Ito, safe for colour-blind eyes), dashes
ARMS = {
    "ntp": ("NTP", "#222222", "--"),
    "ntp_equal_compute": ("NTP on 4/3 of the tokens (the compute of ReMiT)", "#777777", ":"),
    "remit": ("ReMiT, RL reference", "#D55E00", "-"),
    "remit_no_clip": ("ReMiT without clipping", "#E69F00", "-."),
    "remit_early": ("ReMiT, RL model after 10 % of its steps", "#CC79A7", "--"),
    "remit_sft": ("ReMiT, SFT model as the reference", "#009E73", "-."),
    "remit_nonrl": ("control: ReMiT, the model before SFT and RL", "#0072B2", "-"),
    "remit_permuted": ("control: ReMiT, weights permuted", "#56B4E9", ":"),
    "rho1": ("RHO-1, 80 % of the tokens kept", "#009E73", ":"),
    "miniplm": ("MiniPLM: NTP on 80 % of the documents", "#0072B2", "--"),
    "kd": ("KD from the RL reference", "#CC79A7", "-."),
}
PANELS = {
    "methods": ("ntp", "ntp_equal_compute", "remit", "remit_no_clip", "rho1", "miniplm", "kd"),
    "references and controls": ("ntp", "remit", "remit_early", "remit_sft", "remit_nonrl", "remit_permuted"),
}
MODELS = {
    "base": "base",
    "mid": "before SFT and RL",
    "sft": "SFT",
    "rl_early": "RL after 10 % of its steps",
    "rl_reference": "RL reference",
}

Points = list[dict[str, Any]]


def read(folder: Path) -> tuple[dict[str, dict[str, Points]], dict[str, dict[str, Any]]]:
    """Arm -> seed -> evaluations, and model -> accuracies."""
    runs: dict[str, dict[str, Points]] = {}
    for path in sorted(folder.glob("*.*.json")):
        arm, seed, _ = path.name.split(".")
        runs.setdefault(arm, {})[seed] = json.loads(path.read_text())["points"]
    models = {name: json.loads((folder / f"{name}.json").read_text())["tasks"] for name in MODELS}
    return {arm: runs[arm] for arm in ARMS if arm in runs}, models


def values(seeds: dict[str, Points], task: str, at: int) -> list[float]:
    """Accuracy in percent of each seed at evaluation number ``at``."""
    return [100 * points[at]["tasks"][task]["accuracy"] for points in seeds.values()]


def spread(numbers: list[float]) -> str:
    """Mean and sample standard deviation over seeds."""
    if len(numbers) == 1:
        return f"{numbers[0]:.1f}"
    return f"{statistics.mean(numbers):.1f} ± {statistics.stdev(numbers):.1f}"


def weight_spread(folder: Path, steps: int = 30) -> float | None:
    """Standard deviation of the token weights, mean of a run's last ``steps`` steps; None where none is logged."""
    logged = list(read_scalars(folder).get("weight std", {}).values())
    return statistics.mean(logged[-steps:]) if logged else None


def table(runs: dict[str, dict[str, Points]], logs: Path) -> str:
    """Final accuracies and seconds of each arm, and how far its token weights spread around 1."""
    lines = [
        "| arm | seeds | tokens | two-step, % | three-step, % | spread of the weights | seconds of training |",
        "|---" * 7 + "|",
    ]
    for arm, seeds in runs.items():
        last = [points[-1] for points in seeds.values()]
        cells = [spread(values(seeds, task, -1)) for task in TASKS]
        seconds = spread([point["seconds"] for point in last])
        found = [value for seed in seeds if (value := weight_spread(logs / f"{arm}.{seed}")) is not None]
        weights = f"{statistics.mean(found):.3f}" if found else "-"
        lines.append(
            f"| {ARMS[arm][0]} | {len(seeds)} | {last[0]['tokens']:,} | {cells[0]} | {cells[1]} | {weights} "
            f"| {seconds} |"
        )
    return "\n".join(lines)


def on_the_way(runs: dict[str, dict[str, Points]]) -> str:
    """Mean accuracy of the two tasks at every evaluation but the last."""
    lines = []
    for arm, seeds in runs.items():
        first = next(iter(seeds.values()))
        cells = []
        for at in range(len(first) - 1):
            both = [statistics.mean(pair) for pair in zip(*(values(seeds, task, at) for task in TASKS), strict=True)]
            cells.append(f"{first[at]['tokens']:,}: {spread(both)}")
        lines.append(f"| {ARMS[arm][0]} | {' | '.join(cells)} |")
    count = lines[0].count("|") - 2
    return "\n".join(["| arm |" + " tokens: accuracy, % |" * count, "|---|" + "---|" * count, *lines])


def compared(runs: dict[str, dict[str, Points]]) -> str:
    """Each arm against NTP and against the control with a reference that saw no RL: the differences of paired seeds."""
    rows = ["| arm | against | mean gain, points | each seed | the sign |", "|---" * 5 + "|"]
    for baseline in ("ntp", "remit_nonrl"):
        for arm, seeds in runs.items():
            shared = sorted(seeds.keys() & runs.get(baseline, {}).keys())
            if arm == baseline or not shared:
                continue
            gains = [mean_accuracy(seeds[seed]) - mean_accuracy(runs[baseline][seed]) for seed in shared]
            same = all(gain > 0 for gain in gains) or all(gain < 0 for gain in gains)
            verdict = "the same in every seed" if same else "not the same: not distinguishable"
            listed = ", ".join(f"{gain:+.1f}" for gain in gains)
            error = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
            mean = f"{statistics.mean(gains):+.1f}{error}"
            rows.append(f"| {ARMS[arm][0]} | {ARMS[baseline][0]} | {mean} | {listed} | {verdict} |")
    return "\n".join(rows)


def token_kinds(path: Path) -> str:
    """What token_kinds.py found, one row per kind, the two policies side by side."""
    cells: dict[str, list[str]] = {}
    for one in json.loads(path.read_text())["kinds"]:
        row = cells.setdefault(one["kind"], [f"{one['tokens']:,}"])
        row += [f"{one['nll']:.2f}", f"{one['delta']:+.3f}", f"{one['weight']:.3f}", f"{100 * one['kept']:.0f}"]
    head = "NLL | delta | weight | kept, %"
    rows = [f"| kind | tokens | base: {head} | mid: {head} |", "|---" * 10 + "|"]
    return "\n".join(rows + [f"| {kind} | {' | '.join(row)} |" for kind, row in cells.items()])


def mean_accuracy(points: Points) -> float:
    """Mean of the two kinds of problems at the last evaluation, percent."""
    return statistics.mean(100 * points[-1]["tasks"][task]["accuracy"] for task in TASKS)


def draw(runs: dict[str, dict[str, Points]], models: dict[str, dict[str, Any]], path: Path) -> None:
    """Mean accuracy of the seeds against tokens, from the base on, with the range of the seeds as a band."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 8.4))
        grid = figure.subplots(len(TASKS), len(PANELS), sharex=True, sharey="row")
        for row, task in zip(grid, TASKS, strict=True):
            for ax, (title, arms) in zip(row, PANELS.items(), strict=True):
                before, reference = (100 * models[name][task]["accuracy"] for name in ("base", "rl_reference"))
                ax.axhline(reference, color="#555555", linewidth=1, label=MODELS["rl_reference"])
                for arm in arms:
                    if arm in runs:
                        _curve(ax, arm, runs[arm], task, before)
                ax.set_title(f"{task.replace('_', '-')} problems: {title}", fontsize=11)
        for ax in grid[-1]:
            ax.set_xlabel("mid-training tokens, thousands")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9.5)
        for ax in grid[:, 0]:
            ax.set_ylabel("greedy accuracy, %")
        figure.tight_layout()
        write_whole(path, png(figure, dpi=110))


def _curve(ax: Axes, arm: str, seeds: dict[str, Points], task: str, before: float) -> None:
    first = next(iter(seeds.values()))
    x = [0.0] + [point["tokens"] / 1e3 for point in first]
    each = [[before] * len(seeds)] + [values(seeds, task, at) for at in range(len(first))]
    label, colour, dashes = ARMS[arm]
    ax.fill_between(x, [min(one) for one in each], [max(one) for one in each], color=colour, alpha=0.12, linewidth=0)
    ax.plot(
        x,
        [statistics.mean(one) for one in each],
        color=colour,
        linestyle=dashes,
        marker="o",
        markersize=4,
        linewidth=1.8,
        label=label,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page; the PNG has its name")
    parser.add_argument("--mid-tokens", type=int, required=True)
    parser.add_argument("--problems", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True, help="arms that ran at once")
    options = parser.parse_args()
    runs, models = read(options.run_dir / "eval")
    picture = options.out.with_suffix(".png")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(runs, models, picture)
    seconds = {path.name: int(path.read_text()) for path in (options.run_dir / "done").iterdir()}
    of_arms = sum(value for name, value in seconds.items() if "." in name)
    minutes = (sum(seconds.values()) - of_arms + of_arms / options.jobs) / 60
    found, host = versions(), machine()
    text = PAGE.format(
        picture=picture.name,
        tokens=options.mid_tokens,
        problems=options.problems,
        table=table(runs, options.run_dir / "tb"),
        kinds=token_kinds(options.run_dir / "token_kinds.json"),
        on_the_way=on_the_way(runs),
        compared=compared(runs),
        minutes=minutes,
        jobs=options.jobs,
        models="\n".join(
            " | ".join([f"| {MODELS[name]}", *(f"{100 * tasks[task]['accuracy']:.1f}" for task in TASKS), ""]).rstrip()
            for name, tasks in models.items()
        ),
        versions=", ".join(f"{name} {value}" for name, value in found.items() if value),
        host=", ".join(f"{name} {value}" for name, value in host.items()),
    )
    write_whole(options.out, text)
    print(f"wrote {options.out} and {picture}")


PAGE = """# All methods on the tiny flywheel

`examples/compare_tiny.sh` mid-trains one base of 0.9M parameters on {tokens:,} tokens with every method, and
evaluates greedy accuracy on {problems} held-out problems of each kind. A seed orders the data; base and references
are the same for all. Numbers after ± are sample standard deviations over the seeds. Training seconds are those of the
steps, {jobs} runs at once with one thread each. The spread of the weights is the standard deviation of the token
weights in the last 30 steps: 0 would be NTP.

## At the end

{table}

The models that the runs start from, and their references:

| model | two-step, % | three-step, % |
|---|---|---|
{models}

## On the way

Mean of the two kinds.

{on_the_way}

![accuracy against tokens]({picture})

Lines are means over the seeds, starting at the base; bands are their whole range.

## Compared seed by seed

Gains in percentage points with their standard error, mean of the two kinds; both sides of a pair saw the same
tokens in the same order (MiniPLM and the longer NTP run: other tokens).

{compared}

## What the methods do to each kind of token

The table shows the first rows of the corpus under two policies: the base, where the arms start, and the model after NTP
mid-training on more tokens than theirs. NLL and delta to the RL reference are in nats; then come the mean ReMiT weight
and the share of tokens that RHO-1 trains on.

{kinds}

## What may be concluded, and what not

- A gain that has one sign in every seed speaks against chance in the order of the data, and against nothing else: there
  is one base and one RL reference. With three seeds, all three have one sign by chance in one of four cases.
- Learning is a sudden jump at this size, and a method that moves the jump earlier looks much better at a fixed number
  of tokens. The curves, and the arm with the compute of ReMiT, say how much earlier.
- What RL adds is the difference between ReMiT with the RL reference and ReMiT with the model before RL, not the
  difference to NTP. Permuted weights have the same histogram as ReMiT's, but on other tokens.
- Nothing here says what any of the methods gains on a model of 1B parameters.

## Conditions

About {minutes:.0f} minutes in all, {jobs} arms at a time. {host}. {versions}.
"""


if __name__ == "__main__":
    main()
