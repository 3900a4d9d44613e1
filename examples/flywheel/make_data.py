"""Arithmetic word problems with worked solutions, their verifiable reward, filler text, and a tokenizer for them.

A problem:

    Q: Ben has 18 pens. Ben finds 9. Ben loses 26. How many pens?
    A: 18+9=27; 27-26=1 #### 1

Numbers are 2 to 20, every intermediate result 0 to 99, so each answer can be checked. Held-out problems occur in no
training text. Written to --out: base.jsonl and mid.jsonl (key text), sft.jsonl (prompt, completion), grpo.jsonl
(prompt, answer), two_step.jsonl, three_step.jsonl and heldout.jsonl (prompt, answer, text, task), tokenizer/.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megatron_remit.artifacts import write_whole

VOCABULARY = 512
ENDING = re.compile(r"#### (\d+)\s*(?:<eos>)?\s*\Z")
NAMES = "Ann Ben Cora Dan Eva Finn Gus Hana Ivo Jill Kai Lena Max Nora Omar Pia Quin Rosa Sam Tess".split()
THINGS = "pens books coins apples cards shells nuts stamps beads keys cups figs".split()
GAINS = ("finds", "buys", "gets", "wins")
LOSSES = ("loses", "sells", "drops", "eats")
FILLER = (
    "{a} walks to the {place} with {b}.",
    "The {place} is quiet in the {time}.",
    "{a} likes {thing} more than {b} does.",
    "In the {time}, {a} and {b} talk about {thing}.",
    "There is a box of {thing} at the {place}.",
    "{b} reads near the {place} while {a} sleeps.",
    "Nobody at the {place} sells {thing} in the {time}.",
)
PLACES = "market river garden school harbour station bridge mill park library".split()
TIMES = "morning evening spring winter rain summer".split()


def problem(draw: random.Random, steps: int) -> dict[str, str]:
    """One problem of ``steps`` operations: prompt (up to ``A:``), completion, answer, text and task."""
    name, thing, value = draw.choice(NAMES), draw.choice(THINGS), draw.randint(2, 20)
    question, solution = [f"{name} has {value} {thing}."], []
    for _ in range(steps):
        amount = draw.randint(2, 20)
        gain = value - amount < 0 or (value + amount <= 99 and draw.random() < 0.5)
        question.append(f"{name} {draw.choice(GAINS if gain else LOSSES)} {amount}.")
        result = value + amount if gain else value - amount
        solution.append(f"{value}{'+' if gain else '-'}{amount}={result}")
        value = result
    prompt = f"Q: {' '.join(question)} How many {thing}?\nA:"
    completion = f" {'; '.join(solution)} #### {value}"
    task = {1: "one_step", 2: "two_step", 3: "three_step"}[steps]
    return {"prompt": prompt, "completion": completion, "answer": str(value), "text": prompt + completion, "task": task}


def answer_of(completion: str) -> str | None:
    """The number after ``####``, or None if the completion does not end with one."""
    found = ENDING.search(completion)
    return found[1] if found else None


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """TRL's reward signature: for each completion 1 when it ends with the problem's answer, else 0."""
    return [float(answer_of(text) == right) for text, right in zip(completions, answer, strict=True)]


def equation(draw: random.Random) -> str:
    """A few bare equations on one line, such as ``18+9=27; 40-6=34``."""
    found = []
    for _ in range(draw.randint(2, 6)):
        left, right = draw.randint(0, 99), draw.randint(2, 20)
        plus = left - right < 0 or (left + right <= 99 and draw.random() < 0.5)
        found.append(f"{left}{'+' if plus else '-'}{right}={left + right if plus else left - right}")
    return "; ".join(found)


def filler(draw: random.Random) -> str:
    """Two to four sentences without any arithmetic."""

    def one() -> str:
        a, b = draw.sample(NAMES, 2)
        return draw.choice(FILLER).format(
            a=a, b=b, thing=draw.choice(THINGS), place=draw.choice(PLACES), time=draw.choice(TIMES)
        )

    return " ".join(one() for _ in range(draw.randint(2, 4)))


def documents(
    draw: random.Random, shares: tuple[float, float], steps: tuple[int, ...], held: set[str]
) -> Iterator[str]:
    """Endless documents: filler and equations with the given shares, else problems that are not held out."""
    while True:
        kind = draw.random()
        if kind < shares[0]:
            yield filler(draw)
        elif kind < sum(shares):
            yield equation(draw)
        else:
            text = problem(draw, draw.choice(steps))["text"]
            if text not in held:
                yield text


def unique_problems(draw: random.Random, count: int, steps: tuple[int, ...], held: set[str]) -> list[dict[str, str]]:
    """``count`` different problems, none of them in ``held``."""
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        one = problem(draw, steps[len(found) % len(steps)])
        if one["text"] not in held:
            found.setdefault(one["text"], one)
    return list(found.values())


def train_tokenizer(texts: Iterable[str], folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with 512 entries and one token per digit."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<eos>", "<pad>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    # The text may not have 512 entries' worth of pairs to merge.
    core.add_tokens([f"<unused_{index}>" for index in range(core.get_vocab_size(), VOCABULARY)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """JSONL, whole or not at all."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def take_tokens(texts: Iterator[str], count: Callable[[str], int], tokens: int) -> Iterator[dict[str, str]]:
    """Documents up to ``tokens`` tokens, the end-of-document tokens included."""
    while tokens > 0:
        text = next(texts)
        tokens -= count(text) + 1
        yield {"text": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base-tokens", type=int, default=2_000_000)
    parser.add_argument("--mid-tokens", type=int, default=800_000)
    parser.add_argument("--heldout", type=int, default=1000, help="problems of each held-out task")
    parser.add_argument("--sft", type=int, default=1000, help="problems for supervised fine-tuning")
    parser.add_argument("--grpo", type=int, default=4000, help="prompts for reinforcement learning")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    draw = random.Random(options.seed)
    tasks = {steps: unique_problems(draw, options.heldout, (steps,), set()) for steps in (2, 3)}
    held = {one["text"] for rows in tasks.values() for one in rows}
    write_lines(options.out / "two_step.jsonl", tasks[2])
    write_lines(options.out / "three_step.jsonl", tasks[3])
    write_lines(options.out / "heldout.jsonl", tasks[2] + tasks[3])
    base = documents(draw, (0.4, 0.35), (1, 2), held)
    mid = documents(draw, (0.3, 0.35), (2, 3), held)
    sample = [next(base) for _ in range(3000)] + [next(mid) for _ in range(3000)]
    tokenizer = train_tokenizer(sample, options.out / "tokenizer")

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    # 2 % more than asked for, so that no run comes to a second epoch.
    write_lines(options.out / "base.jsonl", take_tokens(base, count, int(options.base_tokens * 1.02)))
    write_lines(options.out / "mid.jsonl", take_tokens(mid, count, int(options.mid_tokens * 1.02)))
    write_lines(options.out / "sft.jsonl", unique_problems(draw, options.sft, (2, 3), held))
    write_lines(options.out / "grpo.jsonl", unique_problems(draw, options.grpo, (2, 3), held))


if __name__ == "__main__":
    main()
