"""Reads W&B's offline files: LevelDB's log format after a header of 7 bytes, each record a protobuf."""

import json
import struct

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
FULL, LAST = 1, 4


def records(path):
    """Each record of a ``.wandb`` file, checksums left aside."""
    data = path.read_bytes()
    assert data[:4] == b":W&B", path
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:  # the end of a block is padded
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""


def history(folder):
    """(run id, rows of the history) of each offline run in ``folder``, the oldest first."""
    found = []
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        run_id, rows = None, []
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run_id = record.run.run_id
            if kind == "history":
                items = record.history.item
                rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
        found.append((run_id, rows))
    return found
