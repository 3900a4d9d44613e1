"""Parquet files: the strings of one column, a batch of rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_remit.data.jsonl import library
from megatron_remit.errors import UserError

SUFFIX = ".parquet"
# Rows that are decoded at once: few enough that books of a megabyte each still fit in memory.
_ROWS = 256
_READ_BYTES = 1 << 20


def check_column(path: Path, column: str) -> None:
    """Read the file's schema only, so that a missing column is known before hours of work.

    Raises:
        UserError: the file is no parquet file, or has no such column of strings.
    """
    with _open(path, column):
        pass


def texts(path: Path, column: str) -> Iterator[tuple[str, str, int]]:
    """Each row's place (``FILE row N``, from 1), its text, and the bytes of the file read since the row before.

    The bytes are the file's size shared out evenly over its rows.

    Raises:
        UserError: as :func:`check_column`, or names the row at which the file is damaged or has no text.
    """
    pyarrow = library("pyarrow", path)
    number = 0
    with _open(path, column) as file:
        rows, size = file.metadata.num_rows, path.stat().st_size
        batches = file.iter_batches(_ROWS, columns=[column], use_threads=False)
        while True:
            try:
                batch = next(batches, None)
                values = [] if batch is None else batch.column(0).to_pylist()
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{path} row {number + 1}: damaged there or within {_ROWS} rows after it ({_short(error)})"
                ) from None
            if batch is None:
                return
            for value in values:
                number += 1
                if value is None:
                    raise UserError(f"{path} row {number}: {column!r} is null, expected a string")
                yield f"{path} row {number}", value, size * number // rows - size * (number - 1) // rows


def _open(path: Path, column: str) -> Any:
    """The file as pyarrow has it, after a check of its schema."""
    pyarrow, parquet = library("pyarrow", path), library("pyarrow.parquet", path)
    try:
        # With a buffer the pages of a row group are read one after the other, not all at once.
        file = parquet.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({_short(error)})") from None
    schema = file.schema_arrow
    if schema.names.count(column) != 1:
        file.close()
        raise UserError(
            f"{path}: no column {column!r} (found: {', '.join(schema.names)}); name the text's column with --json-key"
        )
    kind = schema.field(column).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    types = pyarrow.types
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        file.close()
        raise UserError(f"{path}: column {column!r} is {kind}, expected strings; name the text's with --json-key")
    return file


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")
