"""A sample of the training set: the key that it has, and the NLLs that it brings along from a store."""

import threading

import numpy
import pytest
import torch

from megatron_remit import cpu
from megatron_remit.errors import UserError
from megatron_remit.score_store.keys import row_key
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.shard import PATTERN
from megatron_remit.score_store.writer import StoreWriter
from megatron_remit.scoring.dataset import ScoredDataset
from tests.score_store.synthetic import JOB, LENGTH, make_store, nll

cpu.install()


@pytest.fixture
def folder(tmp_path):
    return make_store(tmp_path / "store")


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
