"""One run of 30 steps on a blend, which the tests of this folder share."""

import json

import pytest

from tests.watch.blend import EVERY_STEP, run, write_blend


@pytest.fixture(scope="package")
def blend(tmp_path_factory):
    return write_blend(tmp_path_factory.mktemp("blend"))


@pytest.fixture(scope="package")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("stores") / "store"


@pytest.fixture(scope="package")
def watched(material, blend, store, tmp_path_factory):
    """What one rank wrote, scored online, and the rows that it read; it also fills the store."""
    folder = tmp_path_factory.mktemp("watched")
    writes = {"score_store": store, "score_store_write": True, "score_miss": "online", "score_dtype": "float32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECORD", str(folder / "rows.jsonl"))
        found = run(material, blend, folder / "save", module="tests.watch.recorded_run", **EVERY_STEP | writes)
    return found, [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
