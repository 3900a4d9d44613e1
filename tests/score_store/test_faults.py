"""Whatever happens to a store, a row is either right or refused, and the message names the file."""

import dataclasses
import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time

import numpy
import pytest

from megatron_remit.errors import UserError
from megatron_remit.score_store import files, maintain
from megatron_remit.score_store.index import INDEX
from megatron_remit.score_store.maintain import merge, prune, verify
from megatron_remit.score_store.manifest import MANIFEST, check_identity, read_manifest
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.shard import PATTERN, Shard
from megatron_remit.score_store.writer import StoreWriter
from tests.ranks import ROOT
from tests.score_store.synthetic import IDENTITY, assert_rows, key, make_store, nll, write

ROWS = 30


@pytest.fixture
def folder(tmp_path):
    folder = make_store(tmp_path / "store")
    write(folder, range(ROWS // 2))
    write(folder, range(ROWS // 2, ROWS))
    return folder


def a_shard(folder):
    """The shard with row 0."""
    return next(path for path in folder.glob(PATTERN) if key(0)[0] in Shard(path, IDENTITY).key_columns()["high"])


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def array_offset(path, name):
    array = files.read_header(path).arrays[name]
    return array.offset + 5


def another_store(folder, **changes):
    other = make_store(folder.parent / "other", dataclasses.replace(IDENTITY, **changes))
    writer = StoreWriter(other, {})
    for number in range(100, 115):
        writer.add(key(number), nll(number)[: changes.get("sequence_length", len(nll(number)))])
    writer.close()
    return next(other.glob(PATTERN))


DAMAGE = {
    "a bit of the length": lambda path: flip(path, 7),
    "a bit of the header": lambda path: flip(path, 40),
    "a bit of the keys": lambda path: flip(path, array_offset(path, "high")),
    "a bit of the checksums": lambda path: flip(path, array_offset(path, "check")),
    "a bit of the NLLs": lambda path: flip(path, array_offset(path, "nll")),
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut to half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "of another reference": lambda path: shutil.copy(another_store(path.parent, reference="c" * 64), path),
    "of another tokenizer": lambda path: shutil.copy(another_store(path.parent, tokenizer="d" * 64), path),
    "of another sequence length": lambda path: shutil.copy(another_store(path.parent, sequence_length=20), path),
}


@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "without index"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_refused_by_name_and_repaired_by_scoring_again(damage, indexed, folder):
    if not indexed:
        (folder / INDEX).unlink()
    path = a_shard(folder)
    DAMAGE[damage](path)
    right, refused = 0, []
    for number in range(ROWS):
        try:
            found = ScoreStore(folder).read(key(number))
        except UserError as error:
            refused.append(str(error))
            continue
        if found is not None:
            assert numpy.array_equal(found, nll(number).astype(numpy.float16)), "a wrong row was used"
            right += 1
    gone_unseen = damage == "deleted" and not indexed  # nothing says that it was there: its rows are misses
    index_suffices = indexed and damage in ("a bit of the keys", "a bit of the checksums")  # it has copies of these
    assert bool(refused) != (gone_unseen or index_suffices)
    assert (right == ROWS) == index_suffices
    assert all(path.name in message for message in refused)
    problems = verify(folder).problems
    assert gone_unseen or any(path.name in problem for problem in problems)
    if not gone_unseen:
        assert any(path.name in line for line in prune(folder))
    assert verify(folder).problems == []
    store = ScoreStore(folder)
    lost = [number for number in range(ROWS) if key(number) not in store]
    assert 0 < len(lost) <= ROWS // 2
    if damage == "a bit of the NLLs":
        assert len(lost) == 1, "the sound rows of the shard are kept"
    write(folder, lost)
    assert_rows(folder, range(ROWS))
    assert (verify(folder).rows, verify(folder).problems) == (ROWS, [])


def test_damage_under_a_reader_is_refused_too(folder):
    store = ScoreStore(folder)
    path = a_shard(folder)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=path.name):
        for number in range(ROWS):
            found = store.read(key(number))
            assert numpy.array_equal(found, nll(number).astype(numpy.float16))


@pytest.mark.parametrize("left", [0, 0.5, 0.9])
def test_an_index_that_is_cut_in_its_place_under_a_reader_costs_nothing(folder, left):
    """A map of the file would end the process with SIGBUS: the rows are found through the shards."""
    store = ScoreStore(folder)
    os.truncate(folder / INDEX, int((folder / INDEX).stat().st_size * left))
    for number in range(ROWS):
        assert numpy.array_equal(store.read(key(number)), nll(number).astype(numpy.float16))
    assert key(ROWS) not in store and len(store) == ROWS


@pytest.mark.parametrize("name", ["high", "shard", "row", "check"])
def test_a_damaged_index_is_not_used(name, folder):
    flip(folder / INDEX, array_offset(folder / INDEX, name))
    assert any(INDEX in problem for problem in verify(folder).problems)
    assert_rows(folder, range(ROWS))
    prune(folder)
    assert verify(folder).problems == []


def test_merge_refuses_a_damaged_store(folder):
    path = a_shard(folder)
    flip(path, array_offset(path, "nll"))
    with pytest.raises(UserError, match=rf"{path.name}: row 0 is damaged; run 'prune' first"):
        merge(folder)
    assert len(list(folder.glob(PATTERN))) == 2


def test_a_folder_without_a_manifest_and_a_changed_manifest_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"nothing/manifest.json: no such file"):
        ScoreStore(tmp_path / "nothing")
    path = folder / MANIFEST
    whole = path.read_text()
    path.write_text(whole.replace('"sequence_length": 40', '"sequence_length": 80'))
    with pytest.raises(UserError, match=r"manifest.json: its contents do not fit its digest"):
        ScoreStore(folder)
    path.write_text(whole[:50])
    with pytest.raises(UserError, match=r"manifest.json: cannot be read"):
        ScoreStore(folder)
    path.write_text(json.dumps(json.loads(whole) | {"format": 2}))
    with pytest.raises(UserError, match=r"store format 2, this program reads 1"):
        ScoreStore(folder)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("reference", "c" * 64, "another reference: found aaaaaaaaaaaa, expected cccccccccccc"),
        ("tokenizer", "c" * 64, "another tokenizer"),
        ("vocabulary", 516, "vocabulary size: found 515, expected 516"),
        ("sequence_length", 80, "sequence length: found 40, expected 80"),
        ("reset_attention_mask", True, "--reset-attention-mask"),
        ("reset_position_ids", True, "--reset-position-ids"),
        ("compute_dtype", "bfloat16", "compute dtype"),
        ("dtype", "float32", "dtype of the stored NLLs"),
    ],
)
def test_a_store_of_something_else_is_refused_by_name(field, value, named, folder):
    identity = read_manifest(folder).identity
    check_identity(folder, identity, dataclasses.asdict(identity))
    with pytest.raises(UserError, match=named) as refused:
        check_identity(folder, identity, dataclasses.asdict(identity) | {field: value})
    assert str(folder) in str(refused.value)


def test_a_store_that_exists_is_not_made_again_for_something_else(folder):
    make_store(folder, dataclasses.replace(IDENTITY, reference="c" * 64))
    assert read_manifest(folder).identity == IDENTITY


def test_twenty_kills_at_random_moments_lose_nothing(tmp_path):
    """kill -9 while rows are added, shards written, synced, renamed and indexed; then the job is run to its end."""
    folder, rows, draw = tmp_path / "store", 4000, random.Random(0)
    for kill in range(20):
        job = subprocess.Popen(
            [sys.executable, "-m", "tests.score_store.write_rows", folder, str(rows), "3"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        if kill % 5:
            job.stdout.readline()  # it has begun to write
            time.sleep(draw.uniform(0.0, 0.12))
        else:
            time.sleep(draw.uniform(0.0, 0.3))  # or is still starting, or making the store
        job.kill()
        assert job.wait() == -9, "every kill hit a running job"
        job.stdout.close()
        if (folder / MANIFEST).exists():
            check = verify(folder)
            assert check.problems == []
    subprocess.run(
        [sys.executable, "-m", "tests.score_store.write_rows", folder, str(rows), str(rows)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    check = verify(folder)
    assert (check.rows, check.duplicates, check.problems) == (rows, 0, [])
    assert check.shards > 20, "the killed jobs wrote shards that count"
    assert_rows(folder, range(rows))


def test_what_a_killed_writer_leaves_is_removed_after_an_hour(folder):
    left = folder / ".scores-x.safetensors.y.tmp"
    left.write_bytes(b"half a shard")
    assert prune(folder) == [] and left.exists(), "a writer may still hold it"
    os.utime(left, (0, time.time() - 2 * maintain._STALE_SECONDS))
    assert verify(folder).leftovers == [left]
    assert any(left.name in line for line in prune(folder)) and not left.exists()


def _limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_file_that_may_not_grow_ends_with_a_clear_error_and_a_whole_store(folder):
    job = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import sys; from pathlib import Path; from megatron_remit.errors import cli\n"
                "from tests.score_store.synthetic import write\n"
                "cli(lambda: write(Path(sys.argv[1]), range(1000, 2000)))"
            ),
            folder,
        ],
        cwd=ROOT,
        preexec_fn=_limit_file_size,
        capture_output=True,
        text=True,
    )
    assert job.returncode == 2
    assert "cannot be written (File too large); the store is whole without it: free space" in job.stderr
    assert_rows(folder, range(ROWS))
    assert verify(folder).problems == [] and not list(folder.glob(".*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_with_a_clear_error_and_a_whole_store(code, folder, monkeypatch):
    """The error comes where disks that allocate late report it: when the bytes are synced."""

    def full(_descriptor):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot be written .*; the store is whole without it: free space"):
            write(folder, range(1000, 1010))
    assert_rows(folder, range(ROWS))
    assert verify(folder).problems == [] and not list(folder.glob(".*"))
    write(folder, range(1000, 1010))
    assert_rows(folder, [*range(ROWS), *range(1000, 1010)])


def test_a_store_that_may_not_be_written_is_read_all_the_same(folder, monkeypatch):
    (folder / INDEX).unlink()

    def refuse(*_):
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr("megatron_remit.score_store.reader.locked", refuse)
    store = ScoreStore(folder)
    store.save_index()
    assert store.read(key(1)) is not None and not (folder / INDEX).exists()


def test_a_name_without_a_file_is_refused(folder):
    (folder / PATTERN.replace("*", "gone")).symlink_to(folder / "nothing")
    with pytest.raises(UserError, match=r"nothing|scores-gone.*no such file"):
        ScoreStore(folder)
