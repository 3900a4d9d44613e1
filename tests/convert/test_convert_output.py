"""What a conversion writes: apart from what it reads, in place of nothing but its own earlier output; its flags."""

import errno
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.errors import UserError
from megatron_remit.programs.commands import export_command, import_command
from tests.hf_models import make_model
from tests.rl_folders.edit import SMALL


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model folder, its import and an export."""
    folder = tmp_path_factory.mktemp("made")
    make_model("llama", folder / "hf", **SMALL)
    import_hf(folder / "hf", folder / "megatron")
    export_hf(folder / "megatron", folder / "hf", folder / "back")
    return folder


@pytest.fixture
def folders(made, tmp_path):
    shutil.copytree(made, tmp_path / "work")
    return tmp_path / "work"


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PLACES = {
    "the_same": lambda folder: folder,
    "inside": lambda folder: folder / "deeper" / "out",
    "around": lambda folder: folder.parent,
    "by_another_path": lambda folder: folder.parent / "hf" / ".." / folder.name,
    "through_a_link": lambda folder: _link(folder.parent / "link", folder),
    "below_a_link": lambda folder: _link(folder.parent / "link", folder) / "out",
}


def _link(link, target):
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("source", ["--hf", "--megatron", "--hf-template"])
def test_an_output_that_overlaps_an_input_is_refused_and_nothing_is_lost(folders, tmp_path, source, place):
    folder = folders / ("megatron" if source == "--megatron" else "hf")
    out = PLACES[place](folder)
    before = _files(folders)
    with pytest.raises(UserError, match=f"--out .* and {source} .* overlap" if place != "around" else "overlap"):
        if source == "--hf":
            import_hf(folder, out, overwrite=True)
        elif source == "--megatron":
            export_hf(folder, shutil.copytree(folders / "hf", tmp_path / "template"), out, overwrite=True)
        else:
            export_hf(shutil.copytree(folders / "megatron", tmp_path / "run"), folder, out, overwrite=True)
    assert _files(folders) == before


def test_an_output_that_holds_the_weights_behind_a_link_is_refused(folders):
    weights = folders / "hf" / "model.safetensors"
    weights.rename(folders / "back" / "model.safetensors")
    weights.symlink_to("../back/model.safetensors")
    with pytest.raises(UserError, match=r"holds what .*hf/model.safetensors leads to"):
        import_hf(folders / "hf", folders / "back", overwrite=True)
    assert weights.is_file()


@pytest.mark.parametrize("way", ["a_link_to_the_file", "a_link_to_the_folder", "inside_the_linked_folder"])
def test_an_output_that_holds_the_weights_behind_two_links_is_refused(folders, tmp_path, way):
    """hf/parts -> mid, and from there into the output."""
    (folders / "hf" / "parts").symlink_to(tmp_path if way == "inside_the_linked_folder" else tmp_path / "mid")
    (tmp_path / "mid").mkdir()
    (tmp_path / "mid" / "back").symlink_to(folders / "back")
    (tmp_path / "mid" / "again").symlink_to(folders / "hf")  # a circle
    if way == "a_link_to_the_file":
        (tmp_path / "mid" / "back").unlink()
        (tmp_path / "mid" / "model.safetensors").symlink_to(folders / "back" / "model.safetensors")
    before = _files(folders / "back")
    with pytest.raises(UserError, match=r"--out .*back holds what .*hf/parts/.* leads to"):
        export_hf(folders / "megatron", folders / "hf", folders / "back", overwrite=True)
    assert _files(folders / "back") == before


def test_what_the_command_wrote_is_replaced(folders):
    shutil.rmtree(folders / "megatron" / "hf")  # a part may be gone
    import_hf(folders / "hf", folders / "megatron", overwrite=True)
    export_hf(folders / "megatron", folders / "hf", folders / "back", overwrite=True)
    _forget_digests(folders)
    export_hf(folders / "megatron", folders / "hf", folders / "back", overwrite=True)
    assert (folders / "megatron" / "hf" / "config.json").is_file()
    assert sorted(path.name for path in folders.iterdir()) == ["back", "hf", "megatron"]


def test_a_link_to_an_earlier_output_stays_a_link(folders, tmp_path):
    (folders / "back").rename(tmp_path / "elsewhere")
    (folders / "back").symlink_to(tmp_path / "elsewhere")
    export_hf(folders / "megatron", folders / "hf", folders / "back", overwrite=True)
    assert (folders / "back").is_symlink() and (tmp_path / "elsewhere" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "work"]


def _change(path):
    content = bytearray(path.read_bytes())
    content[-8:-4] = b"    "  # as many bytes
    path.write_bytes(content)


def _forget_digests(folders, found=None):
    """As an earlier version wrote the list."""
    path = folders / "back" / "remit_conversion.json"
    listed = json.loads(path.read_text())
    del listed["sha256"]
    path.write_text(json.dumps(listed | ({} if found is None else {"sha256": found})))


KEPT = {
    "a_downloaded_model": (lambda folders: (folders / "back" / "remit_conversion.json").unlink(), "has no remit_conv"),
    "an_export_with_another_file": (lambda folders: (folders / "back" / "README.md").write_text("mine"), "README.md"),
    "a_model_trained_in_an_export": (
        lambda folders: (folders / "back" / "model.safetensors").write_bytes(b"trained"),
        "model.safetensors is not as the export wrote it",
    ),
    "a_model_trained_in_place": (
        lambda folders: _change(folders / "back" / "model.safetensors"),
        "model.safetensors is not as the export wrote it",
    ),
    "a_config_edited_in_place": (
        lambda folders: _change(folders / "back" / "config.json"),
        "config.json is not as the export wrote it",
    ),
    "trained_in_place_with_a_list_of_sizes_alone": (
        lambda folders: _forget_digests(folders) or _change(folders / "back" / "model.safetensors"),
        "model.safetensors is not as the export wrote it",
    ),
    "digests_that_are_none": (
        lambda folders: _forget_digests(folders, ["x"]),
        "config.json is not as the export wrote it",
    ),
    "an_import": (
        lambda folders: shutil.rmtree(folders / "back") or (folders / "megatron").rename(folders / "back"),
        "was written by 'import'",
    ),
    "a_file": (
        lambda folders: shutil.rmtree(folders / "back") or (folders / "back").write_text("mine"),
        "is not a folder",
    ),
    "a_broken_list": (lambda folders: (folders / "back" / "remit_conversion.json").write_text("{"), "not valid JSON"),
}


@pytest.mark.parametrize("name", KEPT)
def test_overwrite_leaves_alone_what_the_export_did_not_write(folders, tmp_path, name):
    shutil.copytree(folders / "megatron", tmp_path / "run")
    change, words = KEPT[name]
    change(folders)
    before = _files(folders)
    with pytest.raises(UserError, match=words):
        export_hf(tmp_path / "run", folders / "hf", folders / "back", overwrite=True)
    assert _files(folders) == before


def test_overwrite_leaves_alone_an_import_that_a_run_has_saved_into(folders):
    (folders / "megatron" / "iter_0000005").mkdir()
    (folders / "megatron" / "iter_0000005" / "metadata.json").write_text("{}")
    with pytest.raises(UserError, match=r"iter_0000005/metadata.json is not as the import wrote it"):
        import_hf(folders / "hf", folders / "megatron", overwrite=True)


def test_an_import_that_fails_while_it_writes_leaves_the_old_one(folders):
    whole = (folders / "hf" / "model.safetensors").read_bytes()
    (folders / "hf" / "model.safetensors").write_bytes(whole[:-4] + struct.pack("f", float("nan")))
    before = _files(folders / "megatron")
    with pytest.raises(UserError, match="holds NaN"):
        import_hf(folders / "hf", folders / "megatron", overwrite=True)
    assert _files(folders / "megatron") == before
    assert sorted(path.name for path in folders.iterdir()) == ["back", "hf", "megatron"]


def test_a_template_whose_side_file_is_a_link_out_is_refused(folders):
    (folders / "secret").write_text("secret")
    (folders / "hf" / "NOTICE").symlink_to("../secret")
    with pytest.raises(UserError, match=r"hf/NOTICE leads out of the folder, to .*secret"):
        export_hf(folders / "megatron", folders / "hf", folders / "out")
    assert sorted(path.name for path in folders.iterdir()) == ["back", "hf", "megatron", "secret"]


def test_a_failed_change_of_places_leaves_the_old_one(folders, monkeypatch):
    before, rename = _files(folders), os.rename

    def fail(source, target):
        if Path(target) == folders / "back" and ".tmp-" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match=r"back cannot be written \(.*Input/output error\)"):
        export_hf(folders / "megatron", folders / "hf", folders / "back", overwrite=True)
    assert _files(folders) == before
    assert sorted(path.name for path in folders.iterdir()) == ["back", "hf", "megatron"]


def test_the_flags_reach_the_conversion(folders, monkeypatch, capsys):
    arguments = ["import", "--hf", folders / "hf", "--out", folders / "half", "--dtype", "bf16"]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    import_command()
    arguments = ["export", "--megatron", folders / "half", "--hf-template", folders / "half" / "hf"]
    arguments += ["--out", folders / "small", "--shard-bytes", 20000]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    export_command()
    files = list((folders / "small").glob("model-*.safetensors"))
    assert len(files) > 1 and all(value.dtype == torch.bfloat16 for file in files for value in load_file(file).values())
    assert "imported" in capsys.readouterr().out


@pytest.mark.parametrize("size", [0, -5])
def test_a_file_size_that_no_file_can_have_is_refused(folders, size):
    with pytest.raises(UserError, match=f"--shard-bytes {size}: give a number of bytes above 0"):
        export_hf(folders / "megatron", folders / "hf", folders / "out", shard_bytes=size)
    assert not (folders / "out").exists()
