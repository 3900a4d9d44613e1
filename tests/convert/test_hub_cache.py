"""A model in the Hugging Face cache, or downloaded into a folder: its weights are compared with the hub's digests, and
nothing outside is copied."""

import hashlib
import json
import os
import shutil

import pytest
from huggingface_hub._local_folder import write_download_metadata
from safetensors.torch import load_file

from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.errors import UserError
from megatron_remit.trust import digests
from tests.hf_models import make_model
from tests.rl_folders.edit import SMALL


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "hf"
    make_model("llama", folder, **SMALL)
    return folder


@pytest.fixture
def cached(plain, tmp_path):
    """A snapshot as huggingface_hub lays it out: weights are named by their SHA-256, small files by git's SHA-1."""
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "5e1f"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in plain.iterdir():
        content = file.read_bytes()
        algorithm = hashlib.sha256 if file.suffix == ".safetensors" else hashlib.sha1
        shutil.copy(file, blobs / algorithm(content).hexdigest())
        (snapshot / file.name).symlink_to(f"../../blobs/{algorithm(content).hexdigest()}")
    return snapshot


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 4  # a bit of a weight that stays finite
    path.write_bytes(content)


def test_a_flipped_bit_in_the_cache_is_refused_by_name(cached, tmp_path):
    import_hf(cached, tmp_path / "whole")
    _flip(cached / "model.safetensors")
    with pytest.raises(UserError, match=r"5e1f/model.safetensors: its bytes are not those that were downloaded"):
        import_hf(cached, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    import_hf(cached, tmp_path / "out", skip_digests=True)


def test_a_folder_apart_from_the_cache_is_read_as_before(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "hf")
    _flip(tmp_path / "hf" / "model.safetensors")
    import_hf(tmp_path / "hf", tmp_path / "out")


@pytest.fixture
def downloaded(plain, tmp_path):
    """What ``hf download --local-dir`` leaves: files, and a note of each by the hub's client itself."""
    folder = shutil.copytree(plain, tmp_path / "local")
    for file in plain.iterdir():
        algorithm = hashlib.sha256 if file.suffix == ".safetensors" else hashlib.sha1
        write_download_metadata(folder, file.name, "5e1f", algorithm(file.read_bytes()).hexdigest())
    return folder


def test_a_flipped_bit_in_a_downloaded_folder_is_refused_by_name(downloaded, tmp_path):
    weights = downloaded / "model.safetensors"
    import_hf(downloaded, tmp_path / "whole")
    written = weights.stat()
    _flip(weights)
    os.utime(weights, ns=(written.st_atime_ns, written.st_mtime_ns))  # a disk that decays changes no time
    with pytest.raises(UserError, match=r"local/model.safetensors: its bytes are not those .* than .*safetensors.meta"):
        import_hf(downloaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    import_hf(downloaded, tmp_path / "out", skip_digests=True)


def test_weights_that_were_written_after_the_download_are_others(downloaded, tmp_path):
    weights = downloaded / "model.safetensors"
    _flip(weights)
    later = weights.stat().st_mtime + 60
    os.utime(weights, (later, later))
    import_hf(downloaded, tmp_path / "out")


def test_weights_with_a_list_are_read_once_for_their_digest(cached, tmp_path, monkeypatch):
    """An export that was uploaded has its list in the cache."""
    digests.write_digests(cached, [cached / "model.safetensors"])
    digest, read = digests.digest, []
    monkeypatch.setattr(digests, "digest", lambda path: read.append(path) or digest(path))
    import_hf(cached, tmp_path / "out")
    assert [path for path in read if tmp_path / "cache" in path.parents] == [cached / "model.safetensors"]


def test_a_folder_of_blobs_that_is_a_link_is_no_cache(cached, tmp_path):
    blobs = cached.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    (cached / "NOTICE").symlink_to("../../blobs/secret")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"5e1f/NOTICE leads out of the folder, to .*elsewhere/secret"):
        import_hf(cached, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_may_lie_behind_a_link(plain, tmp_path):
    """Weights are large and hold nothing but tensors; side files, which are copied, may not."""
    hf = shutil.copytree(plain, tmp_path / "hf")
    (tmp_path / "disk").mkdir()
    (hf / "model.safetensors").rename(tmp_path / "disk" / "all.safetensors")
    (hf / "parts").symlink_to(tmp_path / "disk")
    names = load_file(hf / "parts" / "all.safetensors")
    index = {"weight_map": dict.fromkeys(names, "parts/all.safetensors")}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    import_hf(hf, tmp_path / "out")
    import_hf(plain, tmp_path / "expected")
    weights = "release/__0_0.distcp"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "expected" / weights).read_bytes()
