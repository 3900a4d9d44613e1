"""A run that cannot work with its store ends before step 1 and says which flag or file is at fault."""

import shutil

import pytest
import torch

from megatron_remit import cpu
from megatron_remit.argument_checks import check_arguments
from megatron_remit.data.tokenizer import folder_fingerprint
from megatron_remit.errors import UserError
from megatron_remit.reference import fingerprint
from megatron_remit.reference.checkpoint import saved_arguments
from megatron_remit.score_store.manifest import check_free
from megatron_remit.scoring import session
from tests.conftest import write_documents
from tests.ranks import pretrain, run_job
from tests.score_store.programs import SCORER
from tests.test_bad_input import parsed

cpu.install()


def arguments(material, flags, **changes):
    args = parsed(flags)
    args.remit_tokenizer_fingerprint = folder_fingerprint(material.policy / "hf")
    args.params_dtype = torch.float32
    for name, value in changes.items():
        setattr(args, name, value)
    return args


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"score_miss": "online"}, "--score-miss online needs a store"),
        ({"score_wait": 5}, "--score-wait needs a store"),
        ({"score_store_write": True}, "--score-store-write needs a store"),
        ({"score_dtype": "float32"}, "--score-dtype needs a store"),
        ({"score_store": "s", "objective": "ntp"}, "--score-store is for objectives with a reference"),
        ({"score_store": "s", "objective": "kd"}, "--score-store holds one NLL per token, and --objective kd needs"),
        (
            {"score_store": "s", "reference_load": None, "score_miss": "online"},
            "--score-miss online scores with the ref",
        ),
        ({"score_store": "s", "score_store_write": True}, "--score-store-write stores what is scored online"),
        ({"score_store": "s", "score_wait": 600}, "--score-wait 600 is not below the 600 s"),
        ({"mock_data": True, "row_seed": 1}, "--row-seed"),
    ],
)
def test_flags_that_cannot_work_together(changes, named, material):
    with pytest.raises(UserError, match=named):
        check_arguments(parsed(material.remit(**changes)))


def test_a_store_stands_for_the_reference(material):
    check_arguments(parsed(material.flags(objective="remit", score_store="s")))


@pytest.mark.parametrize("value", ["-1", "soon", "inf"])
def test_waiting_times_are_seconds(value, material, capsys):
    with pytest.raises(SystemExit):
        parsed([*material.remit(score_store="s"), f"--score-wait={value}"])
    assert "--score-wait" in capsys.readouterr().err


def test_a_folder_of_other_things_becomes_no_store(tmp_path):
    check_free(tmp_path / "new")
    (tmp_path / "other/.cache").mkdir(parents=True)
    check_free(tmp_path / "other")
    (tmp_path / "other/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"--score-store .*/other: holds config.json and no manifest.json"):
        check_free(tmp_path / "other")


def test_a_store_is_opened_only_by_runs_that_it_fits(material, tmp_path):
    def open_store(create=False, **changes):
        return session.open_store(arguments(material, material.remit(score_store=tmp_path / "s"), **changes), create)

    with pytest.raises(UserError, match=r"s/manifest.json: no such file, so this is no score store"):
        open_store()
    with pytest.raises(UserError, match=r"manifest.json: still not there after 0.1 s"):
        open_store(score_wait=0.1)
    made = open_store(create=True)
    assert made.manifest.identity.dtype == "float16" and made.manifest.created_by["micro_batch_size"] is None
    assert open_store().manifest == open_store(create=True).manifest == made.manifest
    assert open_store(reference_load=None).manifest == made.manifest
    for changes, named in (
        ({"reference_load": material.policy}, "another reference: found .*; --reference-load names another model"),
        ({"remit_tokenizer_fingerprint": "0" * 64}, "another tokenizer"),
        ({"remit_vocab_size": 516}, "vocabulary"),
        ({"seq_length": 48}, "sequence length: found 24, expected 48"),
        ({"params_dtype": torch.bfloat16}, "compute"),
        ({"reset_attention_mask": True}, "--reset-attention-mask"),
        ({"score_dtype": "float32"}, "dtype of the stored"),
    ):
        for create in (False, True):
            with pytest.raises(UserError, match=named):
                open_store(create, **changes)


def test_the_fingerprint_of_a_reference_follows_its_content(material, tmp_path, monkeypatch):
    def of(folder):
        return fingerprint.reference_fingerprint(folder, saved_arguments(folder))

    copied = tmp_path / "elsewhere"
    shutil.copytree(material.reference / "release", copied)
    original = of(copied)
    assert original == of(material.reference / "release") != of(material.policy / "release")
    shard = next(copied.glob("*.distcp"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:])
    assert of(copied) != original
    shard.write_bytes(whole)
    changed = saved_arguments(copied)
    changed.rotary_base = 1
    assert fingerprint.reference_fingerprint(copied, changed) != original
    # A checkpoint above the limit is sampled: blocks of each part of it count.
    monkeypatch.setattr(fingerprint, "_BLOCK", 1000)
    monkeypatch.setattr(fingerprint, "_BLOCKS", 8)
    sampled, step = of(copied), len(whole) // 8
    assert step > 1000
    for at, counts in ((3 * step + 10, True), (len(whole) // 8 * 7 + 999, True), (3 * step + 1500, False)):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert (of(copied) != sampled) == counts


@pytest.mark.slow
def test_the_program_ends_with_the_message_and_no_step(material, tmp_path):
    args = arguments(material, material.remit(score_store=tmp_path / "s"), reference_load=material.policy)
    session.open_store(args, create=True)
    ended = pretrain(1, *material.remit(score_store=tmp_path / "s"), check=False)
    assert ended.returncode != 0
    assert f"error: --score-store {tmp_path}/s: written for another reference" in ended.output
    assert not ended.scalars.get("lm loss")


@pytest.mark.parametrize("program", ["scorer", "training"])
def test_a_refused_corpus_leaves_no_store(material, tmp_path, program):
    write_documents(tmp_path / "short", [torch.arange(1, 20)])
    flags = material.remit(data_path=tmp_path / "short", row_seed=1, score_store=tmp_path / "store")
    if program == "scorer":
        run = run_job(1, script=str(SCORER), command_line=flags)
    else:
        run = pretrain(1, *flags, "--score-store-write", "--score-miss", "online", check=False)
    errors = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert run.returncode == 2 and len(errors) == 1, run.output
    assert f"{tmp_path}/short: the train split has fewer tokens than one row" in errors[0]
    assert not (tmp_path / "store").exists()
