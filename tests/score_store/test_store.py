"""Rows go into a store and come out of it, whoever wrote them and in whatever order."""

import dataclasses
import errno
import multiprocessing
import os
import threading

import numpy
import pytest
import safetensors
import torch

from megatron_remit.errors import UserError
from megatron_remit.objectives.math.weights import remit_weights
from megatron_remit.score_store.index import BYTES_A_ROW, INDEX
from megatron_remit.score_store.info import info
from megatron_remit.score_store.keys import row_key
from megatron_remit.score_store.maintain import merge, prune, verify
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.shard import PATTERN
from megatron_remit.score_store.writer import StoreWriter
from megatron_remit.scoring.dataset import ScoredDataset
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


def test_a_row_takes_two_bytes_a_token_and_a_table_entry(folder):
    write(folder, range(1000))
    size = next(folder.glob(PATTERN)).stat().st_size
    assert 1000 * 2 * LENGTH < size < 1000 * (2 * LENGTH + 20) + 1000
    assert (folder / INDEX).stat().st_size < 1000 * BYTES_A_ROW + 1000


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
    monkeypatch.setattr("megatron_remit.score_store.maintain.index_shards", lambda *_: (_ for _ in ()).throw(KeyError))
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
    monkeypatch.setattr("megatron_remit.score_store.reader._LARGEST_PRIVATE_RUN", 25)
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


def test_keys_that_share_their_high_half_are_told_apart(folder):
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


def sample(number, **changes):
    tokens = torch.randint(0, 515, (LENGTH + 1,), generator=torch.Generator().manual_seed(number))
    mask = torch.ones(LENGTH, LENGTH).tril() < 0.5
    return {
        "tokens": tokens[:-1],
        "labels": tokens[1:],
        "loss_mask": torch.ones(LENGTH),
        "position_ids": torch.arange(LENGTH),
        "attention_mask": mask[None],
    } | changes


def test_the_key_follows_from_what_the_reference_reads():
    plain = row_key(sample(1), False, False)
    assert row_key(sample(1, loss_mask=torch.zeros(LENGTH)), False, False) == plain
    labels = sample(1)["labels"].clone()
    labels[-1] += 1
    assert row_key(sample(1, labels=labels), False, False) != plain
    assert row_key(sample(2), False, False) != plain
    positions = torch.cat([torch.arange(10), torch.arange(LENGTH - 10)])
    cut = sample(1)["attention_mask"].clone()
    cut[:, 10:, :10] = True
    assert row_key(sample(1, position_ids=positions), True, False) != row_key(sample(1), True, False)
    assert row_key(sample(1, attention_mask=cut), False, True) != row_key(sample(1), False, True)


class Samples(torch.utils.data.Dataset):
    index_split = "train"

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return sample(index)


def store_sample(folder, index):
    writer = StoreWriter(folder, JOB)
    writer.add(row_key(sample(index), False, False), nll(index))
    writer.close()


def test_a_training_sample_brings_its_scores_along(folder):
    store_sample(folder, 3)
    found = ScoredDataset(Samples(), ScoreStore(folder), online=False, wait_seconds=0.0)[3]
    numpy.testing.assert_array_equal(found["reference_nll"], nll(3).astype(numpy.float16))
    assert found["reference_nll"].dtype == torch.float32 and torch.equal(found["tokens"], sample(3)["tokens"])


def test_a_row_that_is_not_there_stops_the_run_or_is_left_to_the_reference(folder):
    with pytest.raises(UserError, match=r"sample 4 of the run \(key [0-9a-f]{32}\) is not in it; score the corpus"):
        ScoredDataset(Samples(), ScoreStore(folder), online=False, wait_seconds=0.0)[4]
    left = ScoredDataset(Samples(), ScoreStore(folder), online=True, wait_seconds=0.0)[4]
    assert left["reference_nll"].isnan().all()


def test_a_damaged_row_stops_the_run_or_is_left_to_the_reference(folder, capsys):
    store_sample(folder, 4)
    shard = next(folder.glob(PATTERN))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"sample 4 of the run: .*{shard.name}: damaged, row 0 .* prune"):
        ScoredDataset(Samples(), ScoreStore(folder), online=False, wait_seconds=0.0)[4]
    left = ScoredDataset(Samples(), ScoreStore(folder), online=True, wait_seconds=0.0)[4]
    assert left["reference_nll"].isnan().all()
    assert f"scoring sample 4 online: {shard}: damaged" in capsys.readouterr().out


def test_a_run_follows_a_scorer_and_says_that_it_waits(folder, capsys):
    dataset = ScoredDataset(Samples(), ScoreStore(folder), online=False, wait_seconds=30.0)
    scorer = threading.Timer(0.3, store_sample, (folder, 5))
    scorer.start()
    numpy.testing.assert_array_equal(dataset[5]["reference_nll"], nll(5).astype(numpy.float16))
    scorer.join()
    assert "sample 5 is not in" in capsys.readouterr().out
    hasty = ScoredDataset(Samples(), ScoreStore(folder), online=False, wait_seconds=0.2)
    with pytest.raises(UserError, match=r"after 0\.2 s of waiting"):
        hasty[6]


def test_a_dataloaders_workers_read_the_same(folder):
    for index in range(10):
        store_sample(folder, index)
    dataset = ScoredDataset(Samples(), ScoreStore(folder), online=False, wait_seconds=0.0)
    dataset[0]
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context="fork")
    read = torch.cat([batch["reference_nll"] for batch in loader])
    for index in range(10):
        numpy.testing.assert_array_equal(read[index], nll(index).astype(numpy.float16))
