"""Each bad input is refused by name, before work starts, and leaves no folder behind."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_remit.convert import megatron_to_hf
from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.errors import UserError
from tests.convert.unsupported import UNSUPPORTED
from tests.hf_models import LLAMA3_ROPE, make_model, make_olmo2

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def hf(tmp_path):
    make_olmo2(tmp_path / "hf", num_hidden_layers=1, tokenizer=False)
    return tmp_path / "hf"


@pytest.fixture
def megatron(hf, tmp_path):
    import_hf(hf, tmp_path / "megatron")
    return tmp_path / "megatron"


def _refused(pattern, call, *arguments, **keywords):
    out = arguments[-1]
    with pytest.raises(UserError, match=pattern):
        call(*arguments, **keywords)
    assert [entry.name for entry in out.parent.iterdir() if entry.name.startswith(out.name)] == []


def _edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_unknown_architecture_lists_the_known_ones(hf, tmp_path):
    _edit_config(hf, architectures=["GPT2LMHeadModel"])
    _refused("GPT2LMHeadModel.*Olmo2ForCausalLM", import_hf, hf, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"rope_parameters": {"rope_theta": 5000.0, "rope_type": "dynamic", "factor": 8.0}}, "rope_type.*dynamic"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type.*linear"),
        ({"rope_parameters": {"rope_theta": 5000.5, "rope_type": "default"}}, "rope_theta"),
        ({"hidden_size": "32"}, "hidden_size"),
    ],
)
def test_unsupported_config_is_named(hf, tmp_path, change, named):
    _edit_config(hf, **change)
    _refused(named, import_hf, hf, tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "change", "named"), [(family, *one) for family, cases in UNSUPPORTED.items() for one in cases]
)
def test_what_a_family_cannot_represent_is_named(tmp_path, family, change, named):
    make_model(family, tmp_path / "hf", num_hidden_layers=2, tokenizer=False)
    _edit_config(tmp_path / "hf", **change)
    _refused(named, import_hf, tmp_path / "hf", tmp_path / "out")


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_damaged_weights_of_every_family_are_named(tmp_path, family):
    make_model(family, tmp_path / "hf", num_hidden_layers=1, tokenizer=False)
    weights = tmp_path / "hf" / "model.safetensors"
    whole = weights.read_bytes()
    norm = "model.layers.0.post_attention_layernorm.weight"
    projection = next(name for name in load_file(weights) if name.endswith("o_proj.weight"))
    for edit, pattern in (
        (lambda tensors: tensors.pop(projection), f"tensor {projection} .* is missing"),
        (lambda tensors: tensors.update({f"{projection}_2": torch.zeros(2)}), f"unexpected tensor {projection}_2"),
        (lambda tensors: tensors.update({norm: torch.zeros(3)}), rf"{norm} has shape \[3\], expected"),
        (lambda tensors: tensors.update({norm: tensors[norm].double()}), "several dtypes.*F64"),
    ):
        _edit_tensors(tmp_path / "hf", edit)
        _refused(pattern, import_hf, tmp_path / "hf", tmp_path / "out")
        weights.write_bytes(whole)
    weights.write_bytes(whole[:-1])
    _refused("model.safetensors: damaged or truncated", import_hf, tmp_path / "hf", tmp_path / "out")


def test_weights_in_a_dtype_that_nothing_trains_in(hf, tmp_path):
    _edit_tensors(hf, lambda tensors: tensors.update({name: value.double() for name, value in tensors.items()}))
    _refused("dtype F64", import_hf, hf, tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}, r"no_rope_freq = None, .* \[0, 1\]"),
        ("youtu", {"kv_lora_rank": 24}, "kv_lora_rank = 32"),
        ("olmo3", {"sliding_window": 16}, r"window_size = \(7, 0\), .* \(15, 0\)"),
        ("olmo3", {"layer_types": ["full_attention", "sliding_attention"]}, r"window_attn_skip_freq = \[1, 1\]"),
        ("qwen3_moe", {"num_experts_per_tok": 3}, "moe_router_topk = 2, .* 3"),
        ("olmoe", {"norm_topk_prob": True}, "moe_router_pre_softmax = True, .* False"),
        (
            "llama",
            {"rope_parameters": LLAMA3_ROPE["rope_parameters"] | {"rope_theta": 5000.0}},
            "use_rope_scaling = False",
        ),
    ],
)
def test_export_refuses_a_template_that_differs_in_what_a_family_has_alone(tmp_path, family, change, named):
    make_model(family, tmp_path / "hf", num_hidden_layers=2, tokenizer=False)
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    _edit_config(tmp_path / "hf", **change)
    _refused(named, export_hf, tmp_path / "megatron", tmp_path / "hf", tmp_path / "out")


@pytest.mark.parametrize(
    ("trained_with", "named"),
    [
        ({"window_size": (8, 0)}, r"window_size = \(8, 0\), .* None"),
        ({"softmax_type": "off-by-one"}, "softmax_type = off-by-one, .* vanilla"),
        ({"normalization": "LayerNorm"}, "normalization = LayerNorm, .* RMSNorm"),
        ({"num_experts": 4}, "num_experts = 4, .* None"),
        # Without multi-latent attention these have no effect.
        ({"rope_type": "rope", "kv_lora_rank": 24}, None),
    ],
)
def test_export_refuses_a_feature_that_the_family_does_not_have(tmp_path, monkeypatch, trained_with, named):
    make_model("llama", tmp_path / "hf", num_hidden_layers=1, tokenizer=False)
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    read = megatron_to_hf.CheckpointReader

    def reader(*args):
        found = read(*args)
        vars(found.arguments).update(trained_with)
        return found

    monkeypatch.setattr(megatron_to_hf, "CheckpointReader", reader)
    if named is None:
        export_hf(tmp_path / "megatron", tmp_path / "hf", tmp_path / "out")
    else:
        _refused(named, export_hf, tmp_path / "megatron", tmp_path / "hf", tmp_path / "out")


def test_missing_config(tmp_path):
    _refused("config.json: no such file", import_hf, tmp_path / "nothing", tmp_path / "out")


def test_broken_config(hf, tmp_path):
    (hf / "config.json").write_text("{")
    _refused("config.json: not valid JSON", import_hf, hf, tmp_path / "out")


def test_missing_tensor(hf, tmp_path):
    _edit_tensors(hf, lambda tensors: tensors.pop("model.layers.0.self_attn.q_norm.weight"))
    _refused("model.layers.0.self_attn.q_norm.weight.*missing", import_hf, hf, tmp_path / "out")


def test_unexpected_tensor(hf, tmp_path):
    _edit_tensors(hf, lambda tensors: tensors.update({"model.layers.0.extra": torch.zeros(2)}))
    _refused("unexpected tensor model.layers.0.extra", import_hf, hf, tmp_path / "out")


def test_wrong_shape(hf, tmp_path):
    _edit_tensors(hf, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(31)}))
    _refused(r"model.norm.weight has shape \[31\], expected \[32\]", import_hf, hf, tmp_path / "out")


def test_several_dtypes(hf, tmp_path):
    _edit_tensors(hf, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(32, dtype=torch.bfloat16)}))
    _refused("several dtypes.*BF16", import_hf, hf, tmp_path / "out")


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_truncated_safetensors(hf, tmp_path, kept):
    whole = (hf / "model.safetensors").read_bytes()
    (hf / "model.safetensors").write_bytes(whole[:kept])
    _refused("model.safetensors: damaged or truncated", import_hf, hf, tmp_path / "out")


def test_no_weights(hf, tmp_path):
    (hf / "model.safetensors").unlink()
    _refused("neither model.safetensors nor", import_hf, hf, tmp_path / "out")


def test_missing_shard(tmp_path):
    make_olmo2(tmp_path / "hf", max_shard_size="60KB", tokenizer=False)
    lost = sorted((tmp_path / "hf").glob("*.safetensors"))[1]
    lost.unlink()
    _refused(f"{lost.name}: no such file", import_hf, tmp_path / "hf", tmp_path / "out")


def test_existing_output_is_kept_unless_asked(hf, megatron, tmp_path):
    with pytest.raises(UserError, match="--overwrite"):
        import_hf(hf, megatron)
    import_hf(hf, megatron, overwrite=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="leaves it alone"):
        import_hf(hf, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "precious"


def test_export_refuses_a_folder_without_checkpoint(hf, tmp_path):
    _refused("latest_checkpointed_iteration.txt: no such file", export_hf, tmp_path, hf, tmp_path / "out")


def test_export_refuses_a_missing_iteration(hf, megatron, tmp_path):
    _refused("iter_0000007: no such checkpoint", export_hf, megatron, hf, tmp_path / "out", iteration=7)


def test_export_refuses_a_half_written_checkpoint(hf, megatron, tmp_path):
    (megatron / "release" / "metadata.json").unlink()
    _refused("not a complete torch_dist checkpoint", export_hf, megatron, hf, tmp_path / "out")


def test_export_refuses_a_truncated_shard(hf, megatron, tmp_path):
    shard = next((megatron / "release").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    _refused(f"{shard.name}: truncated", export_hf, megatron, hf, tmp_path / "out")


def test_export_refuses_a_missing_shard(hf, megatron, tmp_path):
    shard = next((megatron / "release").glob("*.distcp"))
    shard.unlink()
    _refused(f"{shard.name}: no such file", export_hf, megatron, hf, tmp_path / "out")


def test_export_refuses_damaged_metadata(hf, megatron, tmp_path):
    (megatron / "release" / ".metadata").write_bytes(b"nonsense")
    _refused(".metadata: missing or damaged", export_hf, megatron, hf, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 2}, "num_layers"),
        ({"rms_norm_eps": 1e-6}, "layernorm_epsilon"),
        ({"vocab_size": 1000}, "the model has 515 tokens, but"),
    ],
)
def test_export_refuses_the_template_of_another_model(hf, megatron, tmp_path, change, named):
    _edit_config(hf, **change)
    _refused(named, export_hf, megatron, hf, tmp_path / "out")


def test_the_program_prints_one_line_and_exits_with_2(tmp_path):
    command = [sys.executable, TOOLS / "import_hf.py", "--hf", tmp_path, "--out", tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in result.stderr


@pytest.mark.parametrize("size", [700, 20_000, 60_000])
def test_a_full_disk_is_said_and_leaves_nothing(hf, tmp_path, size):
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        _refused("out cannot be written .*; free space or choose another --out", import_hf, hf, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
