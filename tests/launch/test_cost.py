"""What a plan says a run costs, against transformers' count of parameters, Megatron's of operations, and by hand."""

import argparse
import json

import pytest
import torch
from megatron.training.training import num_floating_point_operations

from megatron_remit.convert.families import FAMILIES, read_config
from megatron_remit.errors import UserError
from megatron_remit.launch import cost, epochs
from megatron_remit.launch.gpus import GPUS, gpu
from megatron_remit.launch.parameters import read_model
from megatron_remit.launch.plan_checks import place
from megatron_remit.programs.commands import plan_command
from tests.hf_models import SHAPES
from tests.launch.planned import PAPER

BLEND = {"a": 1000, "b": 4000}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", SHAPES)
def test_parameters_are_those_of_transformers(family, tied, tmp_path):
    model_class, shape = SHAPES[family]
    config = model_class.config_class(
        **{"vocab_size": 515, "num_hidden_layers": 4, "pad_token_id": None} | shape | {"tie_word_embeddings": tied},
        architectures=[model_class.__name__],
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = model_class(config)
    own, raw = read_config(tmp_path)
    unset = dict.fromkeys(("num_experts", "window_size", "window_attn_skip_freq"))
    args = argparse.Namespace(**unset | own.arguments(raw))
    assert read_model(tmp_path, args).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_every_family_is_counted_here():
    assert {model_class.__name__ for model_class, _ in SHAPES.values()} == set(FAMILIES)


@pytest.mark.parametrize("family", ["llama", "olmo2", "qwen3", "smollm3"])
def test_operations_are_those_that_megatron_counts(family, planned, tmp_path):
    """Megatron counts the padded vocabulary, and the output layer whether it is shared or not."""
    model_class, shape = SHAPES[family]
    config = model_class.config_class(
        **shape | {"vocab_size": 512, "num_hidden_layers": 4, "max_position_embeddings": 4096},
        architectures=[model_class.__name__],
    )
    config.save_pretrained(tmp_path)
    policy = place(tmp_path, None, 32, [*PAPER, "--objective", "ntp"]).policy
    own = cost.compute(policy.args, policy.model, [])
    expected = num_floating_point_operations(policy.args, 1) / policy.args.seq_length
    assert own.total == pytest.approx(expected, rel=1e-6)


def test_the_papers_run_by_hand(planned):
    text = planned.plan("--save", planned.folder / "run", "--save-interval", 500)
    assert "policy    OLMo-2 (Olmo2ForCausalLM), 16 layers, 1,484,916,736 parameters" in text
    matrices = 16 * (4 * 2048**2 + 3 * 2048 * 8192) + 100352 * 2048
    attention = 2 * 2048 * 4096 * 16  # forward, causal
    policy, reference = 6 * matrices + 3 * attention, 2 * matrices + attention
    assert f"{(policy + reference) / 1e9:.3g} GFLOP per token (policy {6 * matrices / 1e9:.3g}, " in text
    speed = 989e12 * 0.4 / (policy + reference)
    hours = 23842 * 512 * 4096 / speed / 3600
    assert f"{hours:,.0f} GPU-hours, {hours / 32:,.1f} hours, {speed:,.0f} tokens/s per GPU: at 40 %" in text
    # bf16, and in fp32 the weights and two moments.
    assert f"48 checkpoints of {14 * 1484916736 / 1e9:.3g} GB in {planned.folder}/run" in text


def test_what_is_kept_on_disk(planned):
    def kept(*flags):
        policy = place(planned.folder / "base", None, 32, [*PAPER, "--objective", "ntp", *map(str, flags)]).policy
        return cost.disk(policy.args, policy.model, 23842)

    save = ("--save", planned.folder / "run", "--save-interval", 500)
    assert kept() is None
    assert kept(*save).kept == 48 and kept(*save, "--no-save-optim").checkpoint == 2 * 1484916736
    assert kept(*save, "--save-retain-interval", 5000).kept == 6  # 5000 ... 20000, the last, and the one before it
    assert kept(*save).free > 0
    assert "WARNING the checkpoints do not fit" in planned.plan("--save", "/", "--save-interval", 1)
    assert "no checkpoint is kept" in planned.plan()


def test_without_a_reference_its_pass_is_not_counted(planned):
    assert "reference" not in planned.plan("--objective", "ntp", rl=None)
    stored = planned.plan("--score-store", planned.folder / "store", "--row-seed", "1")
    assert "reference:" not in stored and "reference 2." not in stored


def test_epochs_of_a_blend():
    def read(weights, share=1.0):
        blend = (list(BLEND), weights)
        return [(one.share, one.epochs) for one in epochs.read_per_corpus(blend, BLEND, share, 10_000)]

    assert read([0.5, 0.5]) == [(0.5, 5.0), (0.5, 1.25)]
    assert read([2.0, 2.0], 0.5) == [(0.5, 10.0), (0.5, 2.5)]
    assert read(None) == [(0.2, 2.0), (0.8, 2.0)]  # by size
    assert epochs.train_share("99,1,0") == 0.99 and epochs.train_share("1,0,0") == 1.0


def test_a_corpus_that_is_read_too_often(planned):
    small = planned.corpus("small", 1_234_567)
    with pytest.raises(
        UserError, match=r"small: its 1,234,567 tokens would be read 41,795.9 times.* --max-epochs 41796"
    ):
        planned.plan(corpus="small")
    text = planned.plan(corpus="small", max_epochs=50_000)
    assert f"WARNING {small} is read 41,795.9 times" in text
    blend = [0.999, planned.folder / "corpus", 0.001, planned.corpus("some", 10_000_000)]
    text = planned.plan("--split", "1,0,0", "--data-path", *blend)
    assert f"corpus  {planned.folder}/some: 10,000,000 tokens, read 5 times (0.1 % of the run)" in text
    assert f"WARNING {planned.folder}/some is read 5.0 times" in text


def test_the_gpu_that_is_named(planned):
    assert "A100-40GB                        37.25   DOES NOT FIT" in planned.plan(gpu="a100-40gb")
    assert "fits, " in planned.plan(gpu="B200") and "2,250 TFLOP/s of B200" in planned.plan(gpu="B200")
    with pytest.raises(UserError, match=r"--gpu H99: not known; expected one of A100-40GB, "):
        gpu("H99")
    with pytest.raises(UserError, match=r"--mfu 40.0: expected a share"):
        planned.plan(utilization=40.0)
    assert all(kind.name == name and kind.peak > 3e14 for name, kind in GPUS.items())


def test_tensor_parallelism_beyond_a_node_is_warned_of(planned):
    flags = ("--tensor-model-parallel-size", 16)
    assert "WARNING TP 16 does not fit into nodes of 8 GPUs" in planned.plan(*flags)
    assert "WARNING" not in planned.plan(*flags, gpus_per_node=16)


def test_a_manifest_that_does_not_name_the_last_token_is_said(planned):
    content = json.loads((planned.folder / "corpus.json").read_text())
    (planned.folder / "corpus.json").write_text(json.dumps(content | {"append_eod": True}))
    text = planned.plan()
    (planned.folder / "corpus.json").write_text(json.dumps(content))
    assert "note    " in text and "corpus.json: does not name the token that ends the documents" in text


def test_a_missing_folder_is_reported_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["plan", "--base-hf", f"{tmp_path}/no", "--gpus", "8", "--", "--bf16"])
    monkeypatch.setitem(__import__("sys").modules, "megatron_remit.launch.plan", None)  # an import would fail
    with pytest.raises(UserError, match=r"--base-hf .*/no: no such folder"):
        plan_command()
