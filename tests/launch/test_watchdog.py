"""The heartbeat of a run, and when its silence is taken for a hang."""

import json
import re
import timeit

import pytest

from megatron_remit import heartbeat
from megatron_remit.launch.watchdog import Watchdog
from tests.ranks import pretrain


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def minutes(self, number):
        self.now += 60 * number


@pytest.fixture
def run(tmp_path):
    """A function that beats as a run does: ``run(step, doing)``."""
    path = tmp_path / "heartbeat.json"

    def beat(step, doing=heartbeat.TRAINING):
        path.write_text(json.dumps({"step": step, "doing": doing, "time": beat.time}))
        beat.time += 1.0

    beat.time = 1.0
    beat.path = path
    return beat


def test_silence_after_a_step_is_a_hang(run):
    clock = Clock()
    watchdog = Watchdog(run.path, 30, 60, clock)
    run(7)
    assert (watchdog.hang(), watchdog.step) == ("", 7)
    clock.minutes(29)
    run(8)
    assert watchdog.hang() == ""
    clock.minutes(29)
    assert watchdog.hang() == ""
    clock.minutes(1)
    assert watchdog.hang() == "no step for 30 minutes after step 8"
    run(8, heartbeat.SAVING)  # which takes longer than a step
    assert watchdog.hang() == ""
    clock.minutes(59)
    assert watchdog.hang() == ""
    clock.minutes(1)
    assert watchdog.hang() == "no step for 60 minutes after step 8, while saving"


def test_the_first_step_may_take_longer(run):
    clock = Clock()
    run(99)  # of an earlier start
    watchdog = Watchdog(run.path, 30, 60, clock)
    assert not run.path.exists() and watchdog.step == 0
    clock.minutes(40)
    run(0, heartbeat.STARTING)
    assert watchdog.hang() == ""
    clock.minutes(59)
    assert watchdog.hang() == ""
    clock.minutes(1)
    assert watchdog.hang() == "no first step within 60 minutes"


def test_nothing_is_a_hang_without_a_limit(run):
    clock = Clock()
    watchdog = Watchdog(run.path, 0, 60, clock)
    clock.minutes(1e6)
    assert watchdog.hang() == ""


def test_half_a_beat_is_no_news(run):
    watchdog = Watchdog(run.path, 30, 60, Clock())
    run(3)
    assert watchdog.step == 3
    run.path.write_text('{"step": 4, "doi')
    assert watchdog.step == 3 and watchdog.hang() == ""


def test_a_step_leaves_a_beat(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "_heart", heartbeat._Heart())
    path = tmp_path / "heartbeat.json"
    step = heartbeat.after_step(lambda: "result", iter(range(1, 9)).__next__)
    assert step() == "result" and not path.exists()  # nobody asked for beats
    heartbeat.begin(path)
    assert (heartbeat.read(path).step, heartbeat.read(path).doing) == (0, "starting")
    step()
    assert (heartbeat.read(path).step, heartbeat.read(path).doing) == (1, "training")
    heartbeat.before(heartbeat.SAVING, lambda: None)()
    assert (heartbeat.read(path).step, heartbeat.read(path).doing) == (1, "saving")
    assert path.stat().st_size == 128


def test_a_beat_costs_less_than_a_step_can_show(tmp_path, monkeypatch):
    """The shortest step of a cluster takes some 100 ms: 1 ms would be 1 %, and a beat takes a hundredth of that."""
    monkeypatch.setattr(heartbeat, "_heart", heartbeat._Heart())
    heartbeat.begin(tmp_path / "heartbeat.json")
    step = heartbeat.after_step(lambda: None, lambda: 1)
    assert min(timeit.repeat(step, number=100, repeat=5)) / 100 < 1e-3


def test_a_run_lets_nccl_record_what_it_hangs_in(material, tmp_path):
    """Megatron sets NCCL's variables from the flag that each job gives, and prints them as they are then."""
    run = pretrain(1, *material.flags(train_iters=1, flight_recorder_dump_path=tmp_path / "nccl-rank-"))
    found = dict(
        re.findall(r"^  (TORCH_\w+)=(.*)$", run.output.partition("Flight recorder env vars:")[2], re.MULTILINE)
    )
    assert found["TORCH_FR_DUMP_TEMP_FILE"] == found["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == str(tmp_path / "nccl-rank-")
    assert found["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1" and int(found["TORCH_NCCL_TRACE_BUFFER_SIZE"]) > 0
