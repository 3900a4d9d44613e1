"""One shard: rows of NLLs with their keys and checksums, in one safetensors file.

Arrays: ``high`` and ``low`` [n] uint64, the halves of the keys, rows sorted by them; ``check`` [n] uint32, the CRC-32
of each row's key and NLL bytes; ``nll`` [n, s] float16 or float32, nats. The header carries the identity of the store
and a checksum of the first three.

Shape suffixes: N rows, S tokens of a row.
"""

import json
import os
import uuid
import zlib
from pathlib import Path
from typing import Any

import numpy

from megatron_remit.score_store.files import DamagedFile, Header, check_arrays, read_header, write_arrays
from megatron_remit.score_store.keys import Key, key_bytes
from megatron_remit.score_store.manifest import Identity

PATTERN = "scores-*.safetensors"
_KIND = "megatron-remit scores 1"
KEY_COLUMNS = ["high", "low", "check"]


def write_shard(folder: Path, identity: Identity, keys: list[Key], nll_NS: numpy.ndarray, job: dict[str, Any]) -> Path:
    """Write the rows as a new shard under a name that no other job picks.

    Args:
        nll_NS: in the dtype of the store, nats.
        job: how the rows were scored; stored in the header for ``info``.

    Raises:
        UserError: the disk is full or the folder may not be written; nothing is left behind then.
    """
    table_N2 = numpy.array(keys, dtype=numpy.uint64).reshape(-1, 2)
    order_N = numpy.lexsort((table_N2[:, 1], table_N2[:, 0]))
    nll_NS = nll_NS[order_N]
    check_N = [row_check(keys[source], nll_S.tobytes()) for source, nll_S in zip(order_N, nll_NS, strict=True)]
    path = folder / PATTERN.replace("*", uuid.uuid4().hex)
    arrays = {
        "high": table_N2[order_N, 0],
        "low": table_N2[order_N, 1],
        "check": numpy.array(check_N, dtype=numpy.uint32),
        "nll": nll_NS,
    }
    metadata = {"kind": _KIND, "store": identity.digest(), "job": json.dumps(job)}
    write_arrays(path, arrays, metadata, checked=set(KEY_COLUMNS))
    return path


def row_check(key: Key, nll: bytes) -> int:
    """CRC-32 over the key and the NLL bytes of a row, so that neither a flipped bit nor another row passes."""
    return zlib.crc32(nll, zlib.crc32(key_bytes(key)))


class Shard:
    """A shard that exists, has the right size and is of this store. Its NLLs are read row by row."""

    def __init__(self, path: Path, identity: Identity) -> None:
        """Reads the header only.

        Raises:
            DamagedFile: not a whole shard, or one of another store.
            FileNotFoundError: it is gone.
        """
        self.path = path
        self.header: Header = read_header(path)
        if self.header.metadata.get("kind") != _KIND or "nll" not in self.header.arrays:
            raise DamagedFile(f"{path}: not a shard of scores ({self.header.metadata.get('kind')!r})")
        if self.header.metadata.get("store") != identity.digest():
            raise DamagedFile(
                f"{path}: a shard of another store (identity {self.header.metadata.get('store')}, expected "
                f"{identity.digest()}): other reference, tokenizer, sequence length, document masks or dtype"
            )
        nll = self.header.arrays["nll"]
        if nll.shape[1:] != (identity.sequence_length,) or nll.dtype.name != identity.dtype:
            raise DamagedFile(f"{path}: its NLLs are {nll.dtype.name} {list(nll.shape)}, not those of the manifest")
        self.rows = nll.shape[0]
        self.row_bytes = identity.sequence_length * nll.dtype.itemsize
        self._nll = nll

    @property
    def job(self) -> dict[str, Any]:
        """How the rows were scored."""
        return json.loads(self.header.metadata["job"])

    def key_columns(self) -> dict[str, numpy.ndarray]:
        """``high``, ``low`` and ``check`` [n]. Raises DamagedFile if their bytes are not those written."""
        columns = check_arrays(self.path, self.header, KEY_COLUMNS)
        if any(column.shape != (self.rows,) for column in columns.values()):
            raise DamagedFile(f"{self.path}: damaged, its tables and its NLLs differ in length")
        return columns

    def read(self, descriptor: int, row: int, key: Key, check: int) -> numpy.ndarray:
        """The NLLs [s] of a row in the dtype of the store, read through an open descriptor of the file.

        A plain read and not a map: where the file was cut short after it was opened, a map would kill the process.

        Raises:
            DamagedFile: the bytes are not those written.
        """
        payload = os.pread(descriptor, self.row_bytes, self._nll.offset + row * self.row_bytes)
        if len(payload) != self.row_bytes or row_check(key, payload) != check:
            raise DamagedFile(f"{self.path}: damaged, row {row} does not fit its checksum")
        return numpy.frombuffer(payload, dtype=self._nll.dtype)
