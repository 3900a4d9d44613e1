"""One flipped bit in any file of a checkpoint's weights is found, by the file's name, before it is used."""

import shutil
import subprocess
import sys
from argparse import Namespace

import pytest
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.errors import UserError
from megatron_remit.programs.commands import export_command, import_command
from megatron_remit.trust import saving
from megatron_remit.trust.digests import LISTS, check_digests, write_digests
from megatron_remit.trust.loading import TRACKER, check_iteration, checkpoint_files
from tests.ranks import ROOT, pretrain, run_job

ADAM = {"optimizer": "adam", "sgd_momentum": None, "finetune": None, "train_iters": 2, "save_interval": 2}


@pytest.fixture(scope="module")
def saved(material, tmp_path_factory):
    """A run on two ranks that saved its optimizer too, and an export."""
    folder = tmp_path_factory.mktemp("saved")
    two = {"tensor_model_parallel_size": 2, "use_distributed_optimizer": True, "save": folder / "run"}
    pretrain(2, *material.flags(**ADAM | two))
    export_hf(folder / "run", material.policy / "hf", folder / "hf", shard_bytes=150_000)
    return folder


@pytest.fixture
def copy(saved, material, tmp_path):
    for name, source in (("run", saved / "run"), ("hf", saved / "hf"), ("import", material.policy)):
        shutil.copytree(source, tmp_path / name)
    return tmp_path


def flip(path, share=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 4
    path.write_bytes(content)


def test_a_run_lists_every_file_that_it_saved(saved):
    folder = saved / "run" / "iter_0000002"
    assert sorted(path.name for path in folder.glob(LISTS)) == ["remit-00000.sha256", "remit-00001.sha256"]
    assert _listed(folder) == [path.name for path in checkpoint_files(folder)]
    assert ".metadata" in _listed(folder) and "__1_0.distcp" in _listed(folder)


def test_an_asynchronous_save_is_listed_once_all_ranks_have_written_it(tmp_path, monkeypatch):
    """Megatron saves asynchronously on GPUs only."""
    folder, requests = tmp_path / "iter_0000002", []
    monkeypatch.setattr(saving, "get_args", lambda: Namespace(save=str(tmp_path), async_save=True))
    schedule = saving.scheduled_with_digests(requests.append)

    def save_checkpoint(iteration):
        folder.mkdir(exist_ok=True)
        schedule(AsyncRequest(None, (), []))

    save = saving.with_digests(save_checkpoint)
    save(2)
    (folder / "__0_0.distcp").write_bytes(b"written in the background")
    assert list(folder.glob(LISTS)) == []
    _finalize(requests.pop(), folder)
    assert _listed(folder) == ["__0_0.distcp"]
    save(2)  # the same iteration again: what the first one listed does not outlive its files
    assert list(folder.glob(LISTS)) == []
    schedule(AsyncRequest(None, (), []))  # Megatron's second request of a save, for its logits
    assert [len(request.finalize_fns) for request in requests] == [1, 0]
    _finalize(requests[0], folder)
    check_iteration(folder)


def _finalize(request, folder):
    for call in request.finalize_fns:
        call()
    saving._saves._pending[folder].result(timeout=60)


def _listed(folder):
    return sorted(line.split("  ")[1] for path in folder.glob(LISTS) for line in path.read_text().splitlines())


@pytest.mark.parametrize("folder", ["run/iter_0000002", "import/release", "hf"])
def test_sha256sum_reads_the_lists(copy, folder):
    command = "sha256sum --check --quiet --strict remit*.sha256"
    assert subprocess.run(command, shell=True, cwd=copy / folder, check=False).returncode == 0
    flip(next((copy / folder).glob("__0_0.distcp" if folder != "hf" else "*.safetensors")))
    assert subprocess.run(command, shell=True, cwd=copy / folder, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("share", [0.02, 0.4, 0.98])
def test_every_flipped_bit_of_a_runs_checkpoint_is_found_by_export(copy, material, share):
    for path in checkpoint_files(copy / "run" / "iter_0000002"):
        if path.name == "metadata.json":
            continue  # JSON that Megatron itself reads first
        whole = path.read_bytes()
        flip(path, share)
        with pytest.raises(UserError, match=path.name):
            export_hf(copy / "run", material.policy / "hf", copy / "out")
        path.write_bytes(whole)
    export_hf(copy / "run", material.policy / "hf", copy / "out")


@pytest.mark.parametrize(
    ("root", "flag", "share"),
    [
        ("import/release", "load", 0.3),
        ("import/release", "reference_load", 0.9),
        ("run/iter_0000002", "load", 0.9),
        ("run/iter_0000002", "reference_load", 0.3),
        ("run/iter_0000002", "score", 0.6),
    ],
)
def test_a_program_refuses_a_damaged_import_or_run(copy, material, root, flag, share):
    flip(copy / root / "__0_0.distcp", share)
    folder = (copy / root).parent
    if flag == "score":
        flag = "reference_load"
        flags = [*material.remit(reference_load=folder), "--score-store", str(copy / "store")]
        run = run_job(1, script=str(ROOT / "tools/score_corpus.py"), command_line=flags)
    else:
        run = pretrain(1, *material.remit(**{flag: folder}), check=False)
    assert run.returncode == 2 and "Traceback" not in run.output, run.output
    assert f"{root}/__0_0.distcp: its bytes are not those that were written" in run.output
    assert f"--{flag.replace('_', '-')} {folder}" in run.output


def test_two_ranks_read_half_of_the_files_each(copy):
    folder = copy / "run" / "iter_0000002"
    flip(folder / "__1_0.distcp")
    found = []
    for rank in range(2):
        try:
            check_digests(folder, checkpoint_files(folder), rank, 2)
        except UserError as error:
            found.append(str(error))
    assert len(found) == 1 and "__1_0.distcp" in found[0]


def test_a_damaged_file_of_an_export_is_refused_by_import(copy):
    files = sorted((copy / "hf").glob("*.safetensors"))
    assert len(files) > 1
    for path in files:
        whole = path.read_bytes()
        flip(path)
        with pytest.raises(UserError, match=f"{path.name}: its bytes are not those that were written"):
            import_hf(copy / "hf", copy / "out")
        path.write_bytes(whole)
    import_hf(copy / "hf", copy / "out")


def test_the_check_can_be_left_out(copy, material, monkeypatch):
    flip(copy / "import" / "release" / "__0_0.distcp", 0.4)
    flip(next((copy / "hf").glob("*.safetensors")), 0.9)
    commands = {
        export_command: ["--megatron", copy / "import", "--hf-template", material.policy / "hf", "--out", copy / "a"],
        import_command: ["--hf", copy / "hf", "--out", copy / "b"],
    }
    for command, flags in commands.items():
        monkeypatch.setattr(sys, "argv", ["x", *map(str, flags), "--skip-digests"])
        command()
    run = pretrain(1, *material.flags(load=copy / "import", skip_digests=True, train_iters=1))
    assert "no digests" not in run.output


def test_without_digests_a_checkpoint_loads_with_one_line(copy, material):
    (copy / "import" / "release" / "remit.sha256").unlink()
    run = pretrain(2, *material.flags(load=copy / "import", train_iters=1))
    lines = [line for line in run.output.splitlines() if line.startswith("note: ")]
    assert lines == [f"note: {copy / 'import' / 'release'}: no digests; damage to its bytes would not be seen"]


def test_a_save_of_the_same_iteration_replaces_the_digests(saved, material, tmp_path):
    """One rank saves where two were killed before their checkpoint counted: no list of the second one remains."""
    shutil.copytree(saved / "run", tmp_path / "run")
    (tmp_path / "run" / TRACKER).unlink()
    flags = material.flags(**ADAM | {"save": tmp_path / "run"})
    pretrain(1, *flags)
    folder = tmp_path / "run" / "iter_0000002"
    assert [path.name for path in folder.glob(LISTS)] == ["remit-00000.sha256"]
    check_iteration(folder)


def test_a_damaged_list_and_a_missing_file_are_named(copy):
    folder = copy / "import" / "release"
    (folder / "remit.sha256").write_text("no digest\n")
    with pytest.raises(UserError, match=r"remit.sha256: damaged, found 'no digest'"):
        check_iteration(folder)
    write_digests(folder, checkpoint_files(folder))
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"__0_0.distcp .* missing or damaged"):
        check_iteration(folder)
