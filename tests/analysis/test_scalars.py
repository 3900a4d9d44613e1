"""The reader of TensorBoard scalars: every value of a long log, and each step of a resumed one once."""

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from megatron_remit.analysis.scalars import event_folders, read_scalars, seconds_behind, smooth


def write(folder, tag, values):
    with SummaryWriter(str(folder)) as writer:
        for step, value in values:
            writer.add_scalar(tag, value, step)


def test_the_seconds_of_a_long_run_count_every_step(tmp_path):
    """TensorBoard's own default is a sample of 10,000 values."""
    steps = 10_400
    write(tmp_path, "tokens per second", [(step, 100.0 if step % 2 else 50.0) for step in range(1, steps + 1)])
    assert len(read_scalars(tmp_path)["tokens per second"]) == steps
    behind = seconds_behind(tmp_path, 100)
    assert list(behind) == list(range(1, steps + 1))
    assert (behind[1], behind[2], behind[3]) == (1.0, 3.0, 4.0)
    assert behind[10_001] == 5000 * 3 + 1 and behind[steps] == steps / 2 * 3


def test_the_later_value_of_a_resumed_run_counts_and_its_seconds_count_once(tmp_path):
    write(tmp_path, "tokens per second", [(step, 10.0) for step in range(1, 7)])
    write(tmp_path, "tokens per second", [(step, 5.0) for step in range(4, 9)])  # resumed from step 3, after step 6
    assert read_scalars(tmp_path) == {
        "tokens per second": {**dict.fromkeys((1, 2, 3), 10.0), **dict.fromkeys(range(4, 9), 5.0)}
    }
    assert seconds_behind(tmp_path, 10)[8] == 3 * 1 + 5 * 2


def test_folders_below_are_found_and_read_apart(tmp_path):
    write(tmp_path / "a", "loss", [(1, 1.0)])
    write(tmp_path / "a" / "b", "loss", [(1, 2.0)])
    assert event_folders(tmp_path) == [tmp_path / "a", tmp_path / "a" / "b"]
    assert [read_scalars(folder)["loss"][1] for folder in event_folders(tmp_path)] == [1.0, 2.0]
    assert event_folders(tmp_path / "nowhere") == [] and read_scalars(tmp_path) == {}


def test_a_log_without_a_speed_has_no_seconds(tmp_path):
    write(tmp_path, "lm loss", [(1, 1.0)])
    with pytest.raises(KeyError, match="tokens per second"):
        seconds_behind(tmp_path, 1)


def test_smoothing_keeps_constants_and_skips_gaps():
    values = np.full(600, 2.0)
    values[100] = np.nan
    np.testing.assert_allclose(smooth(values), 2.0)
