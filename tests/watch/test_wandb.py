"""W&B without a network: the folders of a run and of its resume hold one id and the figures over tokens."""

import pytest

from tests.ranks import pretrain

pytest.importorskip("wandb")

from tests.watch.offline_runs import history

STEPS, TOKENS_OF_STEP = 2, 8 * 24


def test_a_resumed_run_goes_on_under_its_id(material, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    save = tmp_path / "save"
    flags = {
        "save": save,
        "save_interval": STEPS,
        "train_iters": 2 * STEPS,
        "lr": 0.01,
        "optimizer": "adam",
        "watch_histogram_interval": 1,
    }
    flags |= {"wandb_project": "remit", "wandb_exp_name": "tiny", "wandb_save_dir": tmp_path}
    first = pretrain(1, *material.remit(**flags | {"exit_interval": STEPS}))
    second = pretrain(1, *material.remit(**flags | {"load": save, "finetune": None}))
    runs = history(tmp_path / "wandb")
    identity = (save / "wandb_run_id").read_text().strip()
    assert [run_id for run_id, _ in runs] == [identity, identity]
    for start, (log, (_, rows)) in enumerate(zip((first, second), runs, strict=True)):
        logged = [row for row in rows if "remit/weight mean" in row]
        steps = [start * STEPS + step for step in range(1, STEPS + 1)]
        assert [row["remit/tokens"] for row in logged] == [step * TOKENS_OF_STEP for step in steps]
        for name in ("weight mean", "delta mean", "lm loss"):
            assert [row[f"remit/{name}"] for row in logged] == pytest.approx(log.series(name), rel=1e-6), name
            assert [row[name] for row in logged] == pytest.approx(log.series(name), rel=1e-6), name
        assert all(sum(row["remit/histogram/weight.values"]) > 0 for row in logged)
