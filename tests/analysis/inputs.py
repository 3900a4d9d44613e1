"""What the tests of the comparison compare."""

import csv

from megatron_remit.analysis.build import Request

TEXTS = ["So the sum is 3.\nTherefore <b>&amp;</b> $x$ follows.", "", "ba de " * 40, "Therefore: \tdone"]


def request(folder, out, **overrides):
    return Request(
        **{
            "out": out,
            "model": [f"{name}={folder / name}" for name in ("base", "rl", "sft")],
            "text": [folder / "texts.jsonl"],
            "teacher": "rl",
            "heatmap": ["rl:base"],
            "contrast": ["rl:sft"],
            "seq_length": 32,
            "run": [f"{name}={folder / 'tb' / name}" for name in ("ntp", "remit")],
            "accuracy": [str(folder / "accuracy.csv")],
        }
        | overrides
    )


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))
