"""Speed of tools/preprocess_corpus.py on real text: the sources of Python's standard library, one file per document.

    python benchmarks/preprocess.py --csv benchmarks/results/preprocess_cpu.csv

A byte-level BPE tokenizer of 32000 entries is trained on the same text first. The numbers of worker processes take
turns within each repeat. It prints MB (10^6 bytes of JSONL) and tokens per second, 20th, 50th and 80th percentile.
"""

import argparse
import json
import sysconfig
import tempfile
from pathlib import Path

from common import conditions, percentiles, write_csv
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megatron_remit.data.preprocess import preprocess

VOCABULARY = 32000


def write_text(path: Path) -> None:
    """Every readable source file below the standard library's folder, without installed packages, as JSONL."""
    root = Path(sysconfig.get_paths()["stdlib"])
    with path.open("w") as file:
        for source in sorted(root.rglob("*.py")):
            if "site-packages" in source.parts:
                continue
            try:
                file.write(json.dumps({"text": source.read_text(encoding="utf-8")}) + "\n")
            except UnicodeDecodeError:  # a few test files are broken on purpose
                continue


def write_tokenizer(text: Path, folder: Path) -> None:
    """A byte-level BPE tokenizer trained on ``text``."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    with text.open() as lines:
        core.train_from_iterator(
            (json.loads(line)["text"] for line in lines),
            trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<eos>"], show_progress=False),
        )
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--csv", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.jsonl")
        write_tokenizer(folder / "text.jsonl", folder / "tokenizer")
        seconds: dict[int, list[float]] = {workers: [] for workers in options.workers}
        for _ in range(options.repeats):
            for workers in options.workers:
                counts = preprocess(
                    [folder / "text.jsonl"],
                    folder / "corpus",
                    "HuggingFaceTokenizer",
                    folder / "tokenizer",
                    workers=workers,
                    overwrite=True,
                )
                seconds[workers].append(counts.seconds)
    for workers, times in seconds.items():
        rows.append(
            {
                **conditions("tokenizers", "megatron-core"),
                "workers": workers,
                "repeats": options.repeats,
                "bytes": counts.bytes,
                "documents": counts.documents,
                "tokens": counts.tokens,
                **percentiles("mb_per_second", [counts.bytes / 1e6 / value for value in times], 2),
                **percentiles("tokens_per_second", [counts.tokens / value for value in times], 0),
            }
        )
        print(" ".join(f"{key}={value}" for key, value in rows[-1].items()))
    if options.csv:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
