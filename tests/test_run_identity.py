"""Each part of a run's identity, for each objective: a change is refused by its name, and accepted by it."""

import argparse

import pytest

from megatron_remit.errors import UserError
from megatron_remit.objectives.registry import OBJECTIVES
from megatron_remit.programs import identity
from megatron_remit.programs.identity import check_allowed, check_same_run, run_identity
from tests.conftest import write_corpus
from tests.test_bad_input import parsed

DATA_FLAGS = {
    *("seed", "split", "row_seed", "dataloader_type", "seq_length", "eod_mask_loss"),
    *("reset_position_ids", "reset_attention_mask", "dataloader_inter_document_masking"),
}
WHAT = {"corpora": "the content of the corpora is ", "reference": "the reference is ", "reference_base": "its base is "}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Makes the arguments of a run over two corpora; a frozen model's fingerprint is the name of its folder."""
    monkeypatch.setattr(identity, "_model", lambda checkpoint, store: checkpoint.name)
    for number, name in enumerate("ab"):
        write_corpus(tmp_path / name, 300, documents=5, seed=number)

    def make(objective, weights=(0.5, 0.5), models=("rl", "sft"), **changes):
        blend = ["--data-path", weights[0], tmp_path / "a", weights[1], tmp_path / "b"]
        frozen = ["--reference-load", models[0], "--reference-base-load", models[1]]
        args = parsed(["--objective", objective, "--seq-length", 24, *blend, *frozen])
        vars(args).update(changes)
        return args

    return make


def flags_of(objective):
    """The names of an objective's own flags and of those that it inherits."""
    parser = argparse.ArgumentParser(add_help=False)
    for one in objective.__mro__:
        if "add_arguments" in vars(one):
            one.add_arguments(parser)
    return {action.dest for action in parser._actions}


def another(value):
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else "another"


def assert_refused_alone(now, earlier, name, capsys):
    """``name`` is all that has changed; it is refused and, if allowed, noted."""
    assert {one for one in earlier if now[one] != earlier[one]} == {name}
    with pytest.raises(UserError) as refusal:
        check_same_run(now, earlier, [], "--load run")
    assert str(refusal.value).startswith(WHAT.get(name, f"--{name.replace('_', '-')} "))
    assert str(refusal.value).endswith(f"or pass --allow-changed {name}")
    check_allowed([name], now)
    check_same_run(now, earlier, [name], "--load run")
    assert f"note: {name} was " in capsys.readouterr().err


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_flag_is_refused_by_name_and_allowed_by_it(objective, arguments, capsys):
    earlier = run_identity(arguments(objective))
    flags = DATA_FLAGS | flags_of(OBJECTIVES[objective])
    models = {"reference"} if OBJECTIVES[objective].needs_reference else set()
    models |= {"reference_base"} if OBJECTIVES[objective].needs_base else set()
    assert set(earlier) == flags | models | {"corpora", "objective"}
    check_same_run(earlier, earlier, [], "--load run")
    for name in sorted(flags):
        changed = arguments(objective, **{name: another(getattr(arguments(objective), name))})
        assert_refused_alone(run_identity(changed), earlier, name, capsys)
    for number, name in enumerate(("reference", "reference_base")):
        if name in models:
            changed = arguments(objective, models=("rl", "other") if number else ("other", "sft"))
            assert_refused_alone(run_identity(changed), earlier, name, capsys)


def test_the_corpora_are_their_content_and_their_weights(arguments, tmp_path, capsys):
    earlier = run_identity(arguments("remit"))
    assert_refused_alone(run_identity(arguments("remit", weights=(0.3, 0.7))), earlier, "corpora", capsys)
    for suffix in ("bin", "idx"):
        (tmp_path / f"b.{suffix}").unlink()
    write_corpus(tmp_path / "b", 300, documents=5, seed=9)
    assert_refused_alone(run_identity(arguments("remit")), earlier, "corpora", capsys)


def test_a_name_that_no_run_has_cannot_be_allowed():
    found = {"seed": 7, "objective": "ntp"}
    check_allowed(["seed", "corpora", "kd_temperature"], found | {"corpora": None})
    with pytest.raises(UserError, match="--allow-changed sead: no such name; expected some of seed, objective, "):
        check_allowed(["seed", "sead"], found)
