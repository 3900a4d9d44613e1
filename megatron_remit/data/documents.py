"""The documents of text files, in blocks that can be handed to a process: JSONL (plain, .gz, .zst) and parquet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_remit.data import jsonl, parquet

# Small enough for a smooth progress bar, large enough that handing a block to a process costs nothing.
_BLOCK_BYTES = 1 << 18

# A document's place (FILE:LINE, or FILE row N), and the line of JSON that holds its text, or the text itself.
Row = tuple[str, bytes | str]


@dataclass(frozen=True)
class Block:
    """Successive rows of one file."""

    rows: list[Row]
    size: int
    """Bytes of the rows, uncompressed."""
    file_bytes: int
    """Bytes of the input file read for them: fewer than ``size`` if it is compressed."""

    def texts(self, json_key: str) -> Iterator[tuple[str, str]]:
        """Place and text of each document; blank lines are left out. Raises UserError as ``jsonl.text_of``."""
        for place, row in self.rows:
            if isinstance(row, str):
                yield place, row
            elif row.strip():
                yield place, jsonl.text_of(place, row, json_key)


def blocks(inputs: list[Path], json_key: str) -> Iterator[Block]:
    """All documents of the files, in order, in blocks of about 256 KiB.

    ``json_key`` names the column of parquet files; the lines of the others are not looked at yet.

    Raises:
        UserError: names the file, and the line or row, at which it is damaged, or a column that is missing.
    """
    for path in inputs:
        rows: list[Row] = []
        size = file_bytes = 0
        for row, length, read in _parquet_rows(path, json_key) if path.suffix == parquet.SUFFIX else _json_rows(path):
            rows.append(row)
            size += length
            file_bytes += read
            if size >= _BLOCK_BYTES:
                yield Block(rows, size, file_bytes)
                rows, size, file_bytes = [], 0, 0
        yield Block(rows, size, file_bytes)


def _json_rows(path: Path) -> Iterator[tuple[Row, int, int]]:
    """Each row, its bytes, and the bytes of the file read for it."""
    before = 0
    with path.open("rb") as raw:
        for number, line in enumerate(jsonl.lines(path, raw), start=1):
            position = raw.tell()
            yield (f"{path}:{number}", line), len(line), position - before
            before = position


def _parquet_rows(path: Path, column: str) -> Iterator[tuple[Row, int, int]]:
    for place, text, read in parquet.texts(path, column):
        yield (place, text), len(text.encode()), read
