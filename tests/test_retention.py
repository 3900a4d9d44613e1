"""Which checkpoints of a run stay, in a folder that a killed process left too, and in a real run."""

import shutil

import pytest

from megatron_remit import retention
from tests.ranks import pretrain


@pytest.fixture
def save(tmp_path):
    """A function that makes checkpoints: whole ones, and the tracker file of the last."""

    def make(*steps, tracker=None):
        for step in steps:
            (tmp_path / f"iter_{step:07d}").mkdir()
            (tmp_path / f"iter_{step:07d}/.metadata").touch()
        newest = max(steps) if tracker is None else tracker
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(str(newest))
        return tmp_path

    return make


def left(folder):
    return sorted(int(path.name[5:]) for path in folder.glob("iter_*"))


def test_the_newest_and_the_milestones_stay(save):
    folder = save(10, 20, 25, 30, 40, 50, 57)
    assert retention.prune(folder, 3, 20) == [10, 25, 30]
    assert left(folder) == [20, 40, 50, 57]
    assert retention.prune(folder, 3, 20) == []


def test_what_is_being_written_stays_and_what_never_became_whole_goes(save):
    folder = save(10, 20, 30, 40, tracker=30)
    (folder / "iter_0000015").mkdir()  # a save that was cut short, before newer ones
    (folder / "iter_0000050").mkdir()  # under way
    assert retention.prune(folder, 2, 1000) == [10, 15]
    assert left(folder) == [20, 30, 40, 50]


def test_nothing_goes_before_a_checkpoint_is_whole(save):
    folder = save(10, 20, 30)
    (folder / "latest_checkpointed_iteration.txt").unlink()
    assert retention.prune(folder, 1, 1000) == []
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    assert retention.prune(folder, 1, 1000) == [] and left(folder) == [10, 20, 30]


def test_what_is_not_the_runs_stays(save):
    folder = save(10, 20, 30)
    shutil.move(folder / "iter_0000010", folder / "mine")
    (folder / "iter_0000010").symlink_to(folder / "mine")
    (folder / "iter_backup").mkdir()
    assert retention.prune(folder, 1, 1000) == [20]
    assert (folder / "mine/.metadata").exists() and (folder / "iter_backup").is_dir()


def test_a_process_that_was_killed_while_it_removed_one_leaves_no_half_checkpoint(save, monkeypatch):
    folder = save(10, 20, 30)

    def killed(*_args, **_named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        retention.prune(folder, 1, 1000)
    assert left(folder) == [30]  # renamed, not gone
    assert len(list(folder.glob(".removed-*"))) == 2
    retention.prune(folder, 1, 1000)
    assert list(folder.glob(".removed-*")) == []


def test_a_run_keeps_them_and_logs_what_it_costs(material, tmp_path):
    kept = {"save": tmp_path / "run", "save_interval": 1, "save_retain_interval": 4, "save_keep_last": 2}
    logs = {"log_timers_to_tensorboard": True, "log_throughput": True, "log_memory_to_tensorboard": True}
    beat = {"heartbeat": tmp_path / "heartbeat.json"}
    run = pretrain(1, *material.flags(train_iters=7, **kept, **logs, **beat))
    assert left(tmp_path / "run") == [4, 6, 7]
    assert {"throughput", "iteration-time", "mem-max-allocated-bytes", "tokens per second"} <= set(run.scalars)
    assert '"step": 7, "doing": "saving"' in (tmp_path / "heartbeat.json").read_text()


def test_a_number_to_keep_without_a_rule_for_the_others_is_refused(material):
    run = pretrain(1, *material.flags(save_keep_last=3), check=False)
    assert run.returncode != 0 and "--save-keep-last 3 without --save-retain-interval" in run.output
