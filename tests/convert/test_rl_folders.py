"""Model folders as training tools leave them: read as transformers reads them, or refused with what to run."""

import shlex
import shutil

import pytest
import torch
import transformers
from accelerate.utils import merge_fsdp_weights
from megatron.core import dist_checkpointing
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_remit.convert import hf_tensors
from megatron_remit.convert.hf_io import read_json
from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.errors import UserError
from tests.hf_models import make_model
from tests.rl_folders.edit import BASES, EMBEDDING, HEAD, SMALL, VOCABULARY, config, tensors
from tests.rl_folders.read import READ
from tests.rl_folders.refused import REFUSED, pickled, with_adapter, with_value_head

# What may be in the folder of an import or export.
TRAVELS = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "tokenizer.model", "model.safetensors", "remit_conversion.json"),
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """No warnings of transformers about the folders that it reads with random weights."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain folder of each base."""
    folder = tmp_path_factory.mktemp("plain")
    for name, (family, overrides) in BASES.items():
        make_model(family, folder / name, **SMALL | overrides)
    return folder


@pytest.fixture
def folder_of(plain, tmp_path):
    """Makes a variant's folder."""

    def make(variant):
        shutil.copytree(plain / variant.base, tmp_path / "hf")
        variant.change(tmp_path / "hf")
        snapshots = list((tmp_path / "hf").glob("snapshots/*"))
        return snapshots[0] if snapshots else tmp_path / "hf"

    return make


def _converted(folder, tmp_path, flag=None):
    import_hf(folder, tmp_path / "megatron", dtype=flag)
    export_hf(tmp_path / "megatron", tmp_path / "megatron" / "hf", tmp_path / "back")
    return tmp_path / "back"


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_what_transformers_reads(folder_of, plain, tmp_path, capfd, name):
    variant = READ[name]
    hf = folder_of(variant)
    back = _converted(hf, tmp_path, variant.flag)
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [line for line in notes if variant.note and variant.note in line] or not variant.note, notes
    assert bool(notes) == bool(variant.note), notes

    source = plain / variant.base if variant.as_plain else hf
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=variant.dtype)
    found = AutoModelForCausalLM.from_pretrained(back)
    assert type(found) is type(expected) and found.config.eos_token_id == expected.config.eos_token_id
    values = expected.state_dict()
    assert found.state_dict().keys() == values.keys()
    for tensor, value in found.state_dict().items():
        assert torch.equal(value.to(values[tensor].dtype), values[tensor]), tensor
    assert torch.equal(found.model.rotary_emb.inv_freq, expected.model.rotary_emb.inv_freq)
    saved = dist_checkpointing.load_common_state_dict(str(tmp_path / "megatron" / "release"))["args"]
    assert saved.rotary_base == expected.config.rope_parameters["rope_theta"]
    assert {file.name for file in back.iterdir()} <= TRAVELS | {"remit.sha256"}
    assert {file.name for file in (tmp_path / "megatron" / "hf").iterdir()} <= TRAVELS


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_is_there_and_what_to_do(folder_of, tmp_path, name):
    variant = REFUSED[name]
    hf = folder_of(variant)
    with pytest.raises(UserError, match=variant.words) as error:
        import_hf(hf, tmp_path / "out", dtype=variant.flag)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("change", [pickled, with_value_head, lambda folder: with_adapter(folder, whole=False)])
def test_the_command_in_the_message_makes_a_folder_that_is_imported(plain, tmp_path, change):
    shutil.copytree(plain / "untied", tmp_path / "hf")
    change(tmp_path / "hf")
    with pytest.raises(UserError) as error:
        import_hf(tmp_path / "hf", tmp_path / "out")
    command = shlex.split("python -c " + str(error.value).split("python -c ")[1])
    exec(command[2], {})
    (made,) = tmp_path.glob("hf-*")
    back = _converted(made, tmp_path)
    expected, found = load_file(made / "model.safetensors"), load_file(back / "model.safetensors")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    assert (back / "tokenizer.json").is_file()


def test_shards_of_fsdp_are_imported_after_accelerate_has_merged_them(plain, tmp_path, capfd):
    """The merge gives a tied model two equal tensors."""
    model = AutoModelForCausalLM.from_pretrained(plain / "tied")
    torch.distributed.checkpoint.save(
        {"model": model.state_dict()}, checkpoint_id=tmp_path / "pytorch_model_fsdp_0", no_dist=True
    )
    merge_fsdp_weights(str(tmp_path / "pytorch_model_fsdp_0"), str(tmp_path / "hf"))
    assert HEAD in load_file(tmp_path / "hf" / "model.safetensors")
    for file in (plain / "tied").glob("*.json"):
        shutil.copy(file, tmp_path / "hf")
    back = _converted(tmp_path / "hf", tmp_path)
    assert "lm_head.weight is left out" in capfd.readouterr().err
    expected, found = load_file(plain / "tied" / "model.safetensors"), load_file(back / "model.safetensors")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_tied_tensors_are_compared_to_the_last_value(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_tensors, "_BLOCK", 1000)  # values; the tensors have 8320
    shutil.copytree(plain / "tied", tmp_path / "hf")
    tensors(lambda found: found | {HEAD: found[EMBEDDING]})(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "same")
    tensors(lambda found: found[HEAD][-1, -1].add_(1) is None)(tmp_path / "hf")
    with pytest.raises(UserError, match="differs from"):
        import_hf(tmp_path / "hf", tmp_path / "other")


def test_an_architecture_that_the_config_does_not_name_is_in_the_export(plain, tmp_path):
    shutil.copytree(plain / "untied", tmp_path / "hf")
    config(architectures=..., model_type=...)(tmp_path / "hf")
    with pytest.raises(UserError, match=r"architectures is \[\] and model_type None; this program knows"):
        import_hf(tmp_path / "hf", tmp_path / "megatron")
    config(model_type="llama")(tmp_path / "hf")
    back = _converted(tmp_path / "hf", tmp_path)
    assert read_json(back / "config.json")["architectures"] == ["LlamaForCausalLM"]


def test_code_of_a_folder_stays_behind_and_is_not_named(plain, tmp_path):
    shutil.copytree(plain / "untied", tmp_path / "hf")
    READ["code_named_by_auto_map"].change(tmp_path / "hf")
    back = _converted(tmp_path / "hf", tmp_path)
    for folder in (tmp_path / "megatron" / "hf", back):
        assert list(folder.glob("*.py")) == []
        assert "auto_map" not in read_json(folder / "config.json") | read_json(folder / "tokenizer_config.json")
    # With auto_map left, a reader that trusts remote code would look for the file.
    assert AutoModelForCausalLM.from_pretrained(back, trust_remote_code=True).config.vocab_size == VOCABULARY
