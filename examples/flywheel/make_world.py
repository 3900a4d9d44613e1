"""The data of the tiny flywheel: corpora with a known share of wrong steps, right problems for post-training, held-out
problems and a tokenizer.

Written to --out: base.jsonl, grow.jsonl and mid.jsonl (key text), the same as corpora that Megatron reads (.bin, .idx),
pieces.jsonl (the first documents of mid.jsonl with the kind of each piece), sft.jsonl and sft_errors.jsonl (prompt,
completion), grpo.jsonl (prompt, answer), heldout.jsonl (prompt, completion, answer, text, task), tokenizer/. The
held-out problems and the tokenizer are the same for every --seed and --errors.
"""

import argparse
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from world.corpus import BASE, MID, documents, held_out, training_problems
from world.document import Document
from world.rows import whole_rows

from megatron_remit.artifacts import write_whole

VOCABULARY = 512
ENDING = re.compile(r"#### ([^#]+?)\s*(?:<eos>)?\s*\Z")
ROW = 128
END_TOKEN, PAD_TOKEN = "<eos>", "<pad>"
PIECES = 2000
"""Documents in pieces.jsonl."""
CORPORA = {"base": BASE, "grow": MID, "mid": MID}


def answer_of(completion: str) -> str | None:
    """What stands behind ``####``, or None if the completion does not end with it."""
    found = ENDING.search(completion)
    return found[1] if found else None


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """TRL's reward signature: for each completion 1 when it ends with the problem's answer, else 0."""
    return [float(answer_of(text) == right) for text, right in zip(completions, answer, strict=True)]


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
            special_tokens=[END_TOKEN, PAD_TOKEN],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    # The text may not have 512 entries' worth of pairs to merge.
    core.add_tokens([f"<unused_{index}>" for index in range(core.get_vocab_size(), VOCABULARY)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END_TOKEN, pad_token=PAD_TOKEN)
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """JSONL, whole or not at all."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def rows(found: Iterator[Document], count: Callable[[str], int], tokens: int) -> Iterator[Document]:
    """Whole rows of ``tokens`` tokens in all."""
    return itertools.islice(whole_rows(found, count, ROW, END_TOKEN, PAD_TOKEN), -(-tokens // ROW))


def shared(folder: Path, sums: int, others: int) -> tuple[PreTrainedTokenizerFast, set[str]]:
    """Write the held-out problems and the tokenizer; the tokenizer, and the questions that no corpus may hold."""
    draw = random.Random("held out")
    tasks = held_out(draw, sums, others)
    write_lines(folder / "heldout.jsonl", [one.row() for problems in tasks.values() for one in problems])
    held = {one.prompt for problems in tasks.values() for one in problems}
    sample = [documents(draw, mix, 0.0, held) for mix in (BASE, MID)]
    texts = (one.text for found in sample for one in itertools.islice(found, 3000))
    return train_tokenizer(texts, folder / "tokenizer"), held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, tokens in (("base", 2_000_000), ("grow", 1_200_000), ("mid", 800_000)):
        parser.add_argument(f"--{name}-tokens", type=int, default=tokens)
    parser.add_argument("--errors", type=float, default=0.3, help="share of the corpora's problems with a wrong step")
    parser.add_argument("--heldout", type=int, default=200, help="held-out sums of two and of three steps each")
    parser.add_argument("--heldout-skill", type=int, default=40, help="held-out problems of each other skill")
    parser.add_argument("--sft", type=int, default=1000, help="problems for supervised fine-tuning")
    parser.add_argument("--grpo", type=int, default=4000, help="prompts for reinforcement learning")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer, held = shared(options.out, options.heldout, options.heldout_skill)
    core = tokenizer.backend_tokenizer  # what tokenizer.encode calls, without what it makes of the answer

    def count(text: str) -> int:
        return len(core.encode(text, add_special_tokens=False))

    for name, mix in CORPORA.items():
        draw = random.Random(f"{name} {options.seed}")
        # 2 % more than asked for, so that no run comes to a second epoch.
        tokens = int(getattr(options, f"{name}_tokens") * 1.02)
        found = list(rows(documents(draw, mix, options.errors, held), count, tokens))
        write_lines(options.out / f"{name}.jsonl", [{"text": one.text} for one in found])
    write_lines(options.out / "pieces.jsonl", [[[p.text, p.kind] for p in one.pieces] for one in found[:PIECES]])
    draw = random.Random(f"post-training {options.seed}")
    for name, count_of, errors in (("sft", options.sft, 0.0), ("sft_errors", options.sft, options.errors)):
        write_lines(options.out / f"{name}.jsonl", [p.row() for p in training_problems(draw, count_of, errors, held)])
    write_lines(options.out / "grpo.jsonl", [p.row() for p in training_problems(draw, options.grpo, 0.0, held)])
    # Imported late: what only asks for a reward need not wait for Megatron.
    from megatron_remit.data.preprocess import preprocess

    for name in CORPORA:
        preprocess(
            [options.out / f"{name}.jsonl"],
            options.out / name,
            "HuggingFaceTokenizer",
            options.out / "tokenizer",
            append_eod=False,
            overwrite=True,
        )


if __name__ == "__main__":
    main()
