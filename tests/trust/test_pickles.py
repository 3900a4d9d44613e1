"""No pickle of a checkpoint runs code: whatever names another class than a checkpoint needs is refused by its name."""

import io
import pickle
import shutil
import sys

import pytest
import torch
from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner, FileSystemReader, Metadata, filesystem

from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.errors import UserError
from megatron_remit.programs.commands import export_command
from megatron_remit.trust import pickles
from tests.ranks import ROOT, pretrain, run_job
from tests.trust.attack import (
    MakesFile,
    MakesFileByName,
    poison_common,
    poison_legacy,
    poison_metadata,
    poison_object,
    tensor,
)

POISON = {
    "metadata": (poison_metadata, r"\.metadata: names posix\.mkdir"),
    "common_state": (
        lambda folder, harmful: poison_object(folder, "common_state", harmful),
        r"\(common_state/shard_0_1\): names posix\.mkdir",
    ),
}
LAYER = "decoder.layers.mlp.linear_fc1._extra_state"


@pytest.fixture(autouse=True)
def distrust():
    yield
    pickles.trust_checkpoints(False)


@pytest.fixture
def poisoned(material, tmp_path):
    """A function: a copy of the reference's import in which a pickle makes ``tmp_path / "made"``."""

    def poison(part, harmful=MakesFile):
        root = shutil.copytree(material.reference, tmp_path / "poisoned")
        (root / "release" / "remit.sha256").unlink()
        POISON[part][0](root / "release", harmful(tmp_path / "made"))
        return root

    return poison


READERS = {
    "load": lambda material, root: pretrain(1, *material.flags(load=root), check=False),
    "load_with_the_shape_in_flags": lambda material, root: pretrain(
        1, *material.flags(load=root, use_checkpoint_args=None, num_layers=4, hidden_size=64, num_attention_heads=4),
        *("--max-position-embeddings", 64), check=False,
    ),
    "reference_load": lambda material, root: pretrain(1, *material.remit(reference_load=root), check=False),
    "score": lambda material, root: run_job(
        1,
        script=str(ROOT / "tools/score_corpus.py"),
        command_line=[*material.remit(reference_load=root), "--score-store", str(root.parent / "store")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("part", POISON)
def test_a_run_refuses_the_checkpoint_by_the_class_and_runs_nothing(poisoned, material, tmp_path, part, reader):
    run = READERS[reader](material, poisoned(part))
    assert run.returncode == 2, run.output
    assert "posix.mkdir" in run.failure() and "--trust-checkpoint" in run.failure() and "Traceback" not in run.output
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("harmful", [MakesFile, MakesFileByName])
@pytest.mark.parametrize("part", POISON)
def test_an_export_refuses_it_too(poisoned, material, tmp_path, part, harmful):
    root = poisoned(part, harmful)
    with pytest.raises(UserError, match=r"names posix\.mkdir" if harmful is MakesFile else r"names (builtins\.)?eval"):
        export_hf(root, material.reference / "hf", tmp_path / "out")
    assert not (tmp_path / "made").exists() and not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_trusted_by_the_flag_is_read(poisoned, material, tmp_path, monkeypatch):
    root = poisoned("common_state")
    flags = ["--megatron", root, "--hf-template", material.reference / "hf", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["export", *map(str, flags), "--trust-checkpoint"])
    export_command()
    assert (tmp_path / "made").is_dir() and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        (poison_legacy, "mp_rank_00/model_optim_rng.pt: Megatron's legacy format is a pickle"),
        (poison_common, "common.pt: names posix.mkdir"),
        (lambda folder, harmful: poison_object(folder, LAYER, harmful), "posix"),
        (
            lambda folder, harmful: poison_object(
                folder, "decoder.layers.mlp.linear_fc1._extra_state", tensor(harmful)
            ),
            r"linear_fc1._extra_state/.*\): names posix.mkdir",
        ),
    ],
)
def test_every_kind_of_pickle_is_looked_at(material, tmp_path, poison, words):
    folder = shutil.copytree(material.reference / "release", tmp_path / "release")
    poison(folder, MakesFile(tmp_path / "made"))
    with pytest.raises(UserError, match=words):
        pickles.check_pickles(folder)
    assert not (tmp_path / "made").exists()


def test_a_shard_outside_the_checkpoint_is_refused(material, tmp_path):
    folder = shutil.copytree(material.reference / "release", tmp_path / "release")
    metadata = FileSystemReader(str(folder)).read_metadata()
    for place in metadata.storage_data.values():
        place.relative_path = "../release/__0_0.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=r"names the file '../release/__0_0.distcp', which does not lie in"):
        pickles.check_pickles(folder)


def test_an_exchange_after_the_check_runs_nothing_in_torchs_own_loader(poisoned, tmp_path, monkeypatch):
    """What was checked may be replaced before Megatron reads it: torch's loader has the lists as well."""
    monkeypatch.setattr(filesystem, "pickle", pickle)
    monkeypatch.setattr(DefaultLoadPlanner, "load_bytes", DefaultLoadPlanner.load_bytes)
    pickles.guard_torch()
    root = poisoned("metadata")
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir is not on the list"):
        FileSystemReader(str(root / "release")).read_metadata()
    shutil.rmtree(root)
    root = poisoned("common_state")
    wanted = {"common_state/shard_0_1": io.BytesIO()}
    with pytest.raises(CheckpointException, match=r"posix\.mkdir"):
        torch.distributed.checkpoint.load(wanted, storage_reader=FileSystemReader(str(root / "release")), no_dist=True)
    assert not (tmp_path / "made").exists()


def test_what_torch_and_megatron_write_is_on_the_lists(material):
    metadata = pickles.read_metadata(material.policy / "release")
    assert isinstance(metadata, Metadata)
    assert pickles.read_common_state(material.policy / "release", metadata)["args"].num_layers == 4
    pickles.check_pickles(material.policy / "release")
