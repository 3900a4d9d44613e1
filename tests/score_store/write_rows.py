"""A scorer without a model, to be killed: python -m tests.score_store.write_rows DIR ROWS ROWS_PER_SHARD."""

import sys
from pathlib import Path

from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.writer import StoreWriter
from tests.score_store.synthetic import JOB, key, make_store, nll


def main():
    folder, rows, rows_per_shard = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    make_store(folder)
    store, writer = ScoreStore(folder), StoreWriter(folder, JOB)
    print("writing", flush=True)
    for number in range(rows):
        if key(number) not in store:
            writer.add(key(number), nll(number))
            if number % rows_per_shard == 0:
                writer.flush()
    writer.close()


if __name__ == "__main__":
    main()
