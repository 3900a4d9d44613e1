"""Lines of JSON: read from plain, gzip and Zstandard files, and the text that one of them holds."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from megatron_remit.errors import UserError

_READ_BYTES = 1 << 16


def lines(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    """The lines of ``path``, which is open as ``raw``; ``.gz``, ``.zst`` and ``.zstd`` are decompressed.

    Raises:
        UserError: names the file and the line at which it is damaged or cut short.
    """
    file: Iterable[bytes]
    errors: tuple[type[Exception], ...]
    if path.suffix == ".gz":
        kind, file, errors = "gzip", gzip.open(raw), (EOFError, zlib.error, gzip.BadGzipFile)
    elif path.suffix in (".zst", ".zstd"):
        zstandard = library("zstandard", path)
        kind, file, errors = "zstd", io.BufferedReader(_ZstdFile(raw, zstandard)), (EOFError, zstandard.ZstdError)
    else:
        yield from raw
        return
    number = 0
    try:
        for line in file:
            number += 1
            yield line
    except errors as error:
        raise UserError(f"{path}:{number + 1}: not a whole {kind} file ({error})") from None


def library(name: str, path: Path) -> Any:
    """The module ``name``, which reads ``path``; loaded only when there is such a file.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(f"{path}: reading it takes {package}, which cannot be loaded ({error}); install it") from None


class _ZstdFile(io.RawIOBase):
    """The decompressed bytes of a file of Zstandard frames. zstandard's own reader takes a cut file for a whole one."""

    def __init__(self, raw: BinaryIO, zstandard: Any) -> None:
        # `zstd --long=31` has the largest window; the library refuses windows above 128 MiB unless told.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._raw = raw
        self._frame: Any = None
        self._ahead = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; 0 at the end. Raises EOFError where the last frame is not whole, and ZstdError."""
        while not self._ahead:
            packed = self._raw.read(_READ_BYTES)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0
            self._ahead = memoryview(self._unpacked(packed))
        count = min(len(buffer), len(self._ahead))
        buffer[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        return count

    def _unpacked(self, packed: bytes) -> bytes:
        parts = []
        while packed:
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            parts.append(self._frame.decompress(packed))
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        return b"".join(parts)


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
    except RecursionError:
        raise UserError(f"{place}: lists or objects are nested too deeply to be read") from None
    except ValueError as error:  # Python converts numbers of up to 4300 digits
        raise UserError(f"{place}: a number has too many digits ({str(error).partition(';')[0]})") from None
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
