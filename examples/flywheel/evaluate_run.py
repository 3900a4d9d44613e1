"""Greedy accuracy of every checkpoint of a training run, with the tokens and seconds of training behind each."""

import argparse
import re
import tempfile
from pathlib import Path

from evaluate import accuracies, write_json

from megatron_remit.analysis.scalars import seconds_behind
from megatron_remit.convert.megatron_to_hf import export_hf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megatron", type=Path, required=True, help="what --save named")
    parser.add_argument("--hf-template", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with two_step.jsonl and three_step.jsonl")
    parser.add_argument("--tensorboard", type=Path, required=True, help="the run's log")
    parser.add_argument("--sequences-per-step", type=int, required=True)
    parser.add_argument("--sequence-length", type=int, required=True)
    parser.add_argument("--limit", type=int, help="problems of each task; default: all")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    options = parser.parse_args()
    tokens_per_step = options.sequences_per_step * options.sequence_length
    seconds = seconds_behind(options.tensorboard, tokens_per_step)
    points = []
    for folder in sorted(options.megatron.glob("iter_*")):
        step = int(re.fullmatch(r"iter_(\d+)", folder.name)[1])
        with tempfile.TemporaryDirectory() as name:
            export_hf(options.megatron, options.hf_template, Path(name) / "hf", iteration=step)
            tasks = accuracies(Path(name) / "hf", options.data, options.limit)
        points.append({"step": step, "tokens": step * tokens_per_step, "seconds": seconds[step], "tasks": tasks})
    write_json(options.out, {"points": points})


if __name__ == "__main__":
    main()
