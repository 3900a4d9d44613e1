"""Rows go into a store and come out of it, whoever wrote them and in whatever order."""

import dataclasses
import errno
import multiprocessing
import os

import numpy
import pytest
import safetensors
import torch

from megatron_remit.errors import UserError
from megatron_remit.objectives.math.weights import remit_weights
from megatron_remit.score_store.index import INDEX
from megatron_remit.score_store.info import info
from megatron_remit.score_store.keys import BYTES_PER_ROW
from megatron_remit.score_store.maintain import merge, prune, verify
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.shard import PATTERN
from megatron_remit.score_store.writer import StoreWriter
from tests.score_store.synthetic import IDENTITY, JOB, LENGTH, assert_rows, key, make_store, nll, write


@pytest.fixture
def folder(tmp_path):
    return make_store(tmp_path / "store")


def test_rows_of_several_writers_are_found_and_others_are_not(folder):
    write(folder, range(0, 50))
    write(folder, range(50, 120))
    assert_rows(folder, range(120))
    store = ScoreStore(folder)
    assert len(store) == 120 and key(7) in store
    assert key(120) not in store and store.read(key(120)) is None


def test_an_empty_store_has_no_rows(folder):
    assert len(ScoreStore(folder)) == 0 and ScoreStore(folder).read(key(1)) is None
    assert verify(folder).problems == []


def test_float32_comes_back_bit_for_bit(tmp_path):
    folder = make_store(tmp_path, dataclasses.replace(IDENTITY, dtype="float32"))
    write(folder, range(5))
    for number in range(5):
        assert numpy.array_equal(ScoreStore(folder).read(key(number)), nll(number))


def test_a_row_takes_two_bytes_per_token_and_a_table_entry(folder):
    write(folder, range(1000))
    size = next(folder.glob(PATTERN)).stat().st_size
    assert 1000 * 2 * LENGTH < size < 1000 * (2 * LENGTH + 20) + 1000
    assert (folder / INDEX).stat().st_size < 1000 * BYTES_PER_ROW + 1000


def test_the_safetensors_package_reads_a_shard(folder):
    write(folder, range(10))
    with safetensors.safe_open(next(folder.glob(PATTERN)), "numpy") as file:
        assert file.get_tensor("nll").shape == (10, LENGTH)
        assert sorted(file.get_tensor("high").tolist()) == sorted(key(number)[0] for number in range(10))


def test_float16_moves_a_weight_by_less_than_half_the_nll_error_twice():
    """|dw| <= 1/2 |d(delta - mean)| <= max |dNLL| <= 2^-11 of the row's largest NLL (docs/score-store.md)."""
    draw = torch.Generator().manual_seed(0)
    reference = torch.empty(200, 64, dtype=torch.float64).exponential_(0.2, generator=draw)
    policy = (reference + torch.randn(200, 64, generator=draw, dtype=torch.float64)).clamp(min=0)
    stored = torch.from_numpy(reference.numpy().astype(numpy.float16)).double()
    mask = torch.ones_like(reference)
    exact, rounded = (remit_weights(policy, nll, mask, None).weight_BS for nll in (reference, stored))
    error = (exact - rounded).abs().amax(dim=1)
    bound = reference.amax(dim=1) * 2.0**-11
    assert (error <= bound).all()
    assert error.max() > bound.min() / 50, "the bound is not vacuous"
    assert ((stored - reference).abs().amax(dim=1) <= bound).all()


def test_nlls_that_are_not_finite_are_refused(folder):
    for value in (numpy.nan, numpy.inf, 70000.0):
        with pytest.raises(UserError, match="finite"):
            StoreWriter(folder, JOB).add(key(1), numpy.full(LENGTH, value, dtype=numpy.float32))


def test_rows_that_two_jobs_scored_are_read_once_and_merged_away(folder):
    write(folder, range(0, 60))
    write(folder, range(40, 100))
    assert_rows(folder, range(100))
    assert verify(folder).duplicates == 20
    assert merge(folder) == (2, 1)
    check = verify(folder)
    assert (check.rows, check.duplicates, check.problems) == (100, 0, [])
    assert_rows(folder, range(100))
    assert merge(folder) == (1, 1)


def test_an_open_reader_goes_on_while_shards_are_added_and_merged(folder):
    write(folder, range(10))
    store = ScoreStore(folder)
    assert store.read(key(3)) is not None
    write(folder, range(10, 20), close=False)
    assert store.read(key(15)) is None and store.refresh()
    store.close()
    write(folder, range(20, 30))
    merge(folder)
    for number in range(20):
        numpy.testing.assert_array_equal(store.read(key(number)), nll(number).astype(numpy.float16))
    store.refresh()
    assert store.read(key(25)) is not None


def test_a_shard_that_nfs_has_lost_under_an_open_reader_is_looked_up_again(folder, monkeypatch):
    """NFS says ESTALE of a file that another node has merged away, also where it stands open."""
    write(folder, range(10))
    store, read, stale = ScoreStore(folder), os.pread, [errno.ESTALE]

    def pread(*where):
        if stale:
            raise OSError(stale.pop(), "gone")
        return read(*where)

    monkeypatch.setattr(os, "pread", pread)
    numpy.testing.assert_array_equal(store.read(key(4)), nll(4).astype(numpy.float16))
    assert not stale
    stale.append(errno.EIO)
    with pytest.raises(OSError, match="gone"):
        store.read(key(4))


def test_a_killed_merge_leaves_rows_twice_and_none_lost(folder, monkeypatch):
    write(folder, range(10))
    write(folder, range(10, 20))
    monkeypatch.setattr("megatron_remit.score_store.maintain.write_index", lambda *_: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        merge(folder)
    monkeypatch.undo()
    assert_rows(folder, range(20))
    assert verify(folder).duplicates == 20
    merge(folder)
    assert verify(folder).duplicates == 0


def test_the_index_file_is_only_a_cache(folder):
    write(folder, range(10))
    (folder / INDEX).unlink()
    assert_rows(folder, range(10))
    ScoreStore(folder).save_index()
    assert (folder / INDEX).exists()


def test_many_rows_go_to_the_index_file_and_not_to_each_readers_memory(folder, monkeypatch):
    monkeypatch.setattr("megatron_remit.score_store.reader._MOST_PRIVATE_ROWS", 25)
    write(folder, range(20), close=False)
    store = ScoreStore(folder)
    assert not (folder / INDEX).exists()
    write(folder, range(20, 40), close=False)
    assert store.refresh() and (folder / INDEX).exists()
    for number in range(40):
        numpy.testing.assert_array_equal(store.read(key(number)), nll(number).astype(numpy.float16))


def test_prune_keeps_only_the_rows_asked_for(folder):
    write(folder, range(20))
    done = prune(folder, {key(number) for number in range(5)})
    assert len(done) == 1 and "15 rows dropped, 5 kept" in done[0]
    assert_rows(folder, range(5))
    assert verify(folder).rows == 5


def test_keys_that_share_their_high_half_are_distinguished(folder):
    writer = StoreWriter(folder, JOB)
    for low in (5, 3, 9):
        writer.add((7, low), nll(low))
    writer.close()
    store = ScoreStore(folder)
    for low in (3, 5, 9):
        numpy.testing.assert_array_equal(store.read((7, low)), nll(low).astype(numpy.float16))
    assert (7, 4) not in store and (8, 3) not in store


def _write_some(folder, part):
    make_store(folder)
    for start in range(part * 100, part * 100 + 100, 20):
        write(folder, range(start, start + 25))


def test_several_jobs_make_and_fill_one_store_at_once(tmp_path):
    folder = tmp_path / "store"
    jobs = [multiprocessing.get_context("fork").Process(target=_write_some, args=(folder, part)) for part in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 4
    assert_rows(folder, range(405))
    assert verify(folder).problems == []
    merge(folder)
    assert (verify(folder).rows, verify(folder).duplicates) == (405, 0)


def test_info_says_what_is_there_and_what_of_a_corpus(folder):
    write(folder, range(30))
    text = info(folder, {key(number) for number in range(20, 60)})
    assert "30 rows of 40 tokens" in text and "aaaaaaaaaaaa" in text
    assert "coverage             10 of 40 different rows of the run (25.00 %)" in text
    mean = numpy.mean([nll(number).astype(numpy.float16).astype(numpy.float32) for number in range(30)])
    assert f"mean {mean:.4f}" in text


def _merged_away_behind(folder, step, monkeypatch):
    """Merge the store once, just before a reader's next ``step``; returns how often the reader took it."""
    taken, take = [], getattr(ScoreStore, step)

    def late(store, *arguments):
        if not taken:
            merge(folder)
        taken.append(arguments)
        return take(store, *arguments)

    monkeypatch.setattr(ScoreStore, step, late)
    return taken


@pytest.mark.parametrize("step", ["_shard", "_names"], ids=["after the listing", "after the index"])
@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "without index"])
def test_shards_that_are_merged_away_while_a_store_is_opened_are_listed_again(step, indexed, folder, monkeypatch):
    write(folder, range(10))
    write(folder, range(10, 20))
    if not indexed:
        (folder / INDEX).unlink()
    taken = _merged_away_behind(folder, step, monkeypatch)
    assert_rows(folder, range(20))
    # Without an index there was nothing to contradict the listing that came after the merge.
    assert (len(taken) > 1) == (indexed or step == "_shard")
    assert len(list(folder.glob(PATTERN))) == 1


def test_shards_that_are_merged_away_while_a_reader_looks_for_new_ones_are_listed_again(folder, monkeypatch):
    write(folder, range(10))
    store = ScoreStore(folder)
    write(folder, range(10, 20))
    write(folder, range(20, 30))
    taken = _merged_away_behind(folder, "_shard", monkeypatch)
    assert store.refresh() and len(taken) > 1
    for number in range(30):
        numpy.testing.assert_array_equal(store.read(key(number)), nll(number).astype(numpy.float16))
    assert not store.refresh() and len(store.shards) == 1


def test_a_new_shard_that_is_damaged_leaves_an_open_reader_as_it_was(folder):
    write(folder, range(10))
    store = ScoreStore(folder)
    write(folder, range(10, 20))
    write(folder, range(20, 30))
    known = {shard.path for shard in store.shards}
    path = min(path for path in folder.glob(PATTERN) if path not in known)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UserError, match=path.name):
        store.refresh()
    assert {shard.path for shard in store.shards} == known and len(store) == 10
    assert store.read(key(3)) is not None
