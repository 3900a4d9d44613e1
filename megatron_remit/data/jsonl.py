"""JSONL files, plain or gzip, as blocks of lines that know where they stand."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_remit.errors import UserError

# Small enough for a smooth progress bar, large enough that handing a block to a process costs nothing.
_BLOCK_BYTES = 1 << 18

# A line's place (FILE:LINE), and its bytes.
Line = tuple[str, bytes]


@dataclass(frozen=True)
class Block:
    """Successive lines of one file."""

    lines: list[Line]
    size: int
    """Bytes of the lines, uncompressed."""
    file_bytes: int
    """Bytes of the input file read for them: fewer than ``size`` if it is compressed."""


def blocks(inputs: list[Path]) -> Iterator[Block]:
    """All lines of the files, in order, in blocks of about 256 KiB.

    Raises:
        UserError: names the file and line at which a gzip file is damaged.
    """
    for path in inputs:
        lines: list[Line] = []
        size = before = 0
        with path.open("rb") as raw:
            for number, line in enumerate(_lines(path, raw), start=1):
                lines.append((f"{path}:{number}", line))
                size += len(line)
                if size >= _BLOCK_BYTES:
                    yield Block(lines, size, raw.tell() - before)
                    lines, size, before = [], 0, raw.tell()
            yield Block(lines, size, raw.tell() - before)


def _lines(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    if path.suffix != ".gz":
        yield from raw
        return
    number = 0
    try:
        with gzip.open(raw) as file:
            for line in file:
                number += 1
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}:{number + 1}: not a whole gzip file ({error})") from None


def text_of(place: str, line: bytes, json_key: str) -> str:
    """The string at ``json_key`` of the object on one line.

    Raises:
        UserError: starts with ``place``, and says what was found instead.
    """
    try:
        document = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not valid UTF-8 (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(document, dict) or json_key not in document:
        keys = ", ".join(document) if isinstance(document, dict) else type(document).__name__
        raise UserError(f"{place}: no key {json_key!r} (found: {keys}); name the text's key with --json-key")
    text = document[json_key]
    if not isinstance(text, str):
        raise UserError(f"{place}: {json_key!r} is {type(text).__name__}, expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON may spell one half of a surrogate pair ("\ud800"), which is no character.
        raise UserError(f"{place}: {json_key!r} holds a lone surrogate at character {error.start + 1}") from None
    return text
