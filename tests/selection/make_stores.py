"""Write two stores whose scores differ by a known amount per token, and select once with an interruption.

python -m tests.selection.make_stores FOLDER <data flags> writes FOLDER/large and FOLDER/small. FOLDER/interrupted.npz
holds the documents' differences of a run that was stopped and resumed, and how many rows each part read.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy

from megatron_remit.data.checked import CheckedGPTDataset
from megatron_remit.data.datasets import build_datasets
from megatron_remit.programs.start import check, parse_arguments
from megatron_remit.score_store.keys import row_key
from megatron_remit.score_store.manifest import Identity, Manifest, create_manifest
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.writer import StoreWriter
from megatron_remit.selection import documents


def gain(tokens):
    """log p_large - log p_small of a token; exact in fp16."""
    return (tokens % 7 - 3) / 4


class Stops:
    """A store that fails after so many rows, as a killed run would."""

    def __init__(self, store, rows):
        self.folder, self.manifest, self._store, self._left = store.folder, store.manifest, store, rows
        self.reads = 0

    def read(self, key):
        if self.reads == self._left:
            raise KeyboardInterrupt
        self.reads += 1
        return self._store.read(key)


def main():
    folder = Path(sys.argv[1])
    args = parse_arguments(sys.argv[2:])
    check(args)
    dataset, *_ = build_datasets((1, 0, 0), lambda: True)
    identity = Identity(
        "",
        args.remit_tokenizer_fingerprint,
        args.remit_vocab_size,
        args.seq_length,
        args.reset_attention_mask,
        args.reset_position_ids,
        "float32",
        "float16",
    )
    writers = {}
    for name in ("large", "small"):
        create_manifest(folder / name, Manifest(replace(identity, reference=name * 8), {}))
        writers[name] = StoreWriter(folder / name, {})
    rows = len(dataset.sample_index) - 1
    for row in range(rows):
        sample = CheckedGPTDataset.__getitem__(dataset, row)
        labels, key = sample["labels"].numpy(), row_key(sample, args.reset_position_ids, args.reset_attention_mask)
        large = 4 + labels % 5 / 4
        writers["large"].add(key, large)
        writers["small"].add(key, large + gain(labels))
    for writer in writers.values():
        writer.close()

    documents._ROWS_PER_NOTE = 8
    large, small = ScoreStore(folder / "large"), ScoreStore(folder / "small")
    scores = folder / "interrupted.npy"
    first, second = Stops(large, 21), Stops(large, -1)
    try:
        documents.write_differences(dataset, first, small, scores, "job")
    except KeyboardInterrupt:
        pass
    documents.write_differences(dataset, second, small, scores, "job")
    numpy.savez(folder / "interrupted.npz", scores=numpy.load(scores), reads=[first.reads, second.reads, rows])


if __name__ == "__main__":
    main()
