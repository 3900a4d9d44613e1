"""What every report of the flywheel measures of a model, on the held-out problems: the one place that does.

The first measure is the NLL of a problem's right solution, in nats a solution, its end of text included: it moves
smoothly where the accuracy of a small model jumps. The second is greedy accuracy.

A problem stands behind an end of text, as 92 % of the worked sums in the mid-training corpus do. The others begin a row
and have nothing in front; what a small model makes of so few is chance (docs/report.md has figures).

Shape suffixes: P problems of a batch, T positions, V vocabulary.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from make_world import answer_of
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from world.slips import OFFSETS

from megatron_remit.analysis.scalars import read_scalars, seconds_behind
from megatron_remit.artifacts import write_whole
from megatron_remit.convert.megatron_to_hf import export_hf

BATCH = 128
BEHIND = "end of text"
"""What stands in front of a problem, for the cell: cells that lack it have nothing there."""
NEW_TOKENS = 48
FIRST_STEP = re.compile(r" (\d+)([+-])(\d+)=")

Rows = list[dict[str, str]]


class Measured:
    """A Hugging Face model and its tokenizer, on the CPU in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()

    def ids(self, text: str) -> list[int]:
        """Token ids; of special tokens only those that are in the text."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def document(self, text: str) -> str:
        """The text as a document begins."""
        return self.tokenizer.eos_token + text

    @torch.inference_mode()
    def continuation_logits(self, prompts: Sequence[str], endings: Sequence[list[int]]) -> Iterator[tuple[int, Tensor]]:
        """For each pair its index, and the logits [tokens, V] that predict its ending's tokens; short ones first."""
        heads = [self.ids(self.document(prompt)) for prompt in prompts]
        order = sorted(range(len(heads)), key=lambda at: len(heads[at]) + len(endings[at]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            rows = [heads[at] + endings[at] for at in chosen]
            width = max(map(len, rows))
            # On the right, where a causal model's earlier positions do not see it.
            ids_PT = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
            logits_PTV = self.model(ids_PT).logits
            for place, at in enumerate(chosen):
                first = len(heads[at]) - 1
                yield at, logits_PTV[place, first : first + len(endings[at])]


def solution_nll(measured: Measured, rows: Rows) -> list[float]:
    """Nats of each right solution and its end of text, given the question."""
    endings = [[*measured.ids(row["completion"]), measured.tokenizer.eos_token_id] for row in rows]
    found = [0.0] * len(rows)
    for at, logits_TV in measured.continuation_logits([row["prompt"] for row in rows], endings):
        found[at] = torch.nn.functional.cross_entropy(logits_TV, torch.tensor(endings[at]), reduction="sum").item()
    return found


def divergence(measured: Measured, reference: Measured, rows: Rows) -> float:
    """Nats per token of the right solutions: the KL divergence of the model from the reference, as distillation has it
    (the reference's distribution comes first)."""
    endings = [[*measured.ids(row["completion"]), measured.tokenizer.eos_token_id] for row in rows]
    prompts = [row["prompt"] for row in rows]
    total, tokens = 0.0, 0
    both = zip(
        measured.continuation_logits(prompts, endings), reference.continuation_logits(prompts, endings), strict=True
    )
    for (_, logits_TV), (_, teacher_TV) in both:
        own_TV, wanted_TV = logits_TV.log_softmax(-1), teacher_TV.log_softmax(-1)
        total += (wanted_TV.exp() * (wanted_TV - own_TV)).sum().item()
        tokens += len(logits_TV)
    return total / tokens


def slip_probabilities(measured: Measured, rows: Rows) -> dict[str, float]:
    """Mean probability of the right result of each problem's first step, and of the six that are off by 1, 2 or 10."""
    prompts, endings, right = [], [], []
    for row in rows:
        step = FIRST_STEP.match(row["completion"])
        if step is None:
            continue
        result = int(step[1]) + int(step[3]) * (1 if step[2] == "+" else -1)
        for value in (result, *(result + offset for offset in OFFSETS if result + offset >= 0)):
            prompts.append(row["prompt"] + step[0])
            # What stands behind the result, so that 1 is not counted as the first digit of 12.
            endings.append(measured.ids(f"{value};"))
            right.append(value == result)
    log_p = torch.zeros(len(endings), dtype=torch.float64)
    for at, logits_TV in measured.continuation_logits(prompts, endings):
        chosen_T = logits_TV.log_softmax(-1).gather(-1, torch.tensor(endings[at])[:, None])
        log_p[at] = chosen_T.double().sum()
    mask = torch.tensor(right)
    count = int(mask.sum())
    return {"p_true": log_p[mask].exp().sum().item() / count, "p_slip": log_p[~mask].exp().sum().item() / count}


@torch.inference_mode()
def greedy_right(measured: Measured, rows: Rows) -> list[int]:
    """1 for each problem whose greedy completion ends with the right answer, else 0."""
    tokenizer, found = measured.tokenizer, [0] * len(rows)
    tokenizer.padding_side = "left"
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]["prompt"]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        inputs = tokenizer(
            [measured.document(rows[at]["prompt"]) for at in chosen],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
        inputs.pop("token_type_ids", None)
        ids = measured.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].size(1) :], skip_special_tokens=True)
        for at, text in zip(chosen, texts, strict=True):
            found[at] = int(answer_of(text) == rows[at]["answer"])
    return found


def by_task(rows: Rows, values: Sequence[float]) -> dict[str, list[float]]:
    """The values of each kind of problem, in the order of the file."""
    found: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        found.setdefault(row["task"], []).append(float(f"{value:.4g}"))
    return found


def measure(folder: Path, rows: Rows, whole: bool = True, reference: Measured | None = None) -> dict[str, Any]:
    """The figures of the model in ``folder``: NLLs by task; if ``whole``, right answers, probabilities of slips and the
    divergence from ``reference`` too."""
    measured = Measured(folder)
    found: dict[str, Any] = {"nll": by_task(rows, solution_nll(measured, rows))}
    if whole:
        found["right"] = by_task(rows, greedy_right(measured, rows))
        found |= slip_probabilities(measured, [row for row in rows if row["task"] in ("two_step", "three_step")])
        if reference is not None:
            found["kl_reference"] = divergence(measured, reference, rows)
    return found


def measure_run(options: argparse.Namespace, rows: Rows, reference: Measured | None) -> list[dict[str, Any]]:
    """A point for each checkpoint of a training run, the last one whole."""
    tokens_per_step = options.sequences_per_step * options.sequence_length
    seconds = seconds_behind(options.tensorboard, tokens_per_step)
    folders = sorted(options.megatron.glob("iter_*"))
    points = []
    for folder in folders:
        step = int(folder.name.removeprefix("iter_"))
        last = folder == folders[-1]
        with tempfile.TemporaryDirectory() as name:
            out = options.keep_hf if last and options.keep_hf else Path(name) / "hf"
            export_hf(options.megatron, options.hf_template, out, iteration=step, overwrite=out == options.keep_hf)
            figures = measure(out, rows, last, reference)
        points.append({"tokens": step * tokens_per_step, "seconds": round(seconds[step], 1)} | figures)
    return points


def curves(folder: Path, tokens_per_step: int, parts: int = 40) -> dict[str, list[float]]:
    """The run's log by tag, means of ``parts`` stretches of equal length, and the tokens behind each."""
    wanted = ("lm loss", "grad-norm", "weight std", "weight mean", "kept share")
    found = {}
    for tag, values in read_scalars(folder).items():
        if tag in wanted:
            stretches = torch.tensor(list(values.values())).tensor_split(min(parts, len(values)))
            found[tag] = [float(f"{part.mean():.4g}") for part in stretches]
            steps = torch.tensor(list(values)).tensor_split(min(parts, len(values)))
            found["tokens"] = [int(part[-1]) * tokens_per_step for part in steps]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, help="a model's folder; or, of a training run:")
    parser.add_argument("--megatron", type=Path, help="what --save named")
    parser.add_argument("--hf-template", type=Path)
    parser.add_argument("--tensorboard", type=Path, help="the run's log")
    parser.add_argument("--sequences-per-step", type=int)
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--keep-hf", type=Path, help="export the last checkpoint here")
    parser.add_argument("--reference", type=Path, help="Hugging Face folder for the divergence")
    parser.add_argument("--data", type=Path, required=True, help="heldout.jsonl of make_world.py")
    parser.add_argument("--about", type=json.loads, default={}, help="JSON that the result begins with")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    reference = None if options.reference is None else Measured(options.reference)
    content = dict(options.about)
    content["settings"] = content.get("settings", {}) | {"behind": BEHIND}
    if options.hf is not None:
        content["points"] = [measure(options.hf, rows, True, reference)]
    else:
        content["points"] = measure_run(options, rows, reference)
        content["tensorboard"] = curves(options.tensorboard, options.sequences_per_step * options.sequence_length)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
