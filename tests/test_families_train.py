"""The families train with ReMiT: from a Hugging Face folder through a pipeline and back again."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.megatron_to_hf import export_hf
from tests.conftest import VOCABULARY, Material, write_corpus
from tests.hf_models import make_model
from tests.ranks import ROOT, pretrain, run_command

pytestmark = pytest.mark.slow

POLICIES = ("smollm3", "youtu", "olmo3", "qwen2")
FIGURES = ("lm loss", "remit loss", "reference nll", "weight mean", "weight std", "clipped low", "clipped high")


@dataclass
class Trained:
    figures: dict
    tensors: dict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SmolLM3, Youtu-LLM, OLMo-3 and Qwen2 as policies, another SmolLM3 as the reference for all, and a corpus."""
    folder = tmp_path_factory.mktemp("families")
    for number, family in enumerate(POLICIES):
        make_model(family, folder / f"hf_{family}", seed=number)
    make_model("smollm3", folder / "hf_reference", seed=len(POLICIES))
    (folder / "hf_smollm3" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    for name in ("youtu", "olmo3", "qwen2", "reference"):
        import_hf(folder / f"hf_{name}", folder / name)
    done = run_command(
        ["python", ROOT / "tools/import_hf.py", "--hf", folder / "hf_smollm3", "--out", folder / "smollm3"]
    )
    assert done.returncode == 0, done.output
    write_corpus(folder / "corpus", VOCABULARY)
    return folder


def train(folder, policy, name, ranks, **layout):
    """Two steps of plain SGD: the change of the weights is proportional to the sum of the gradients."""
    material = Material(folder / policy, folder / "reference", folder / "corpus")
    flags = material.remit(save=folder / name, save_interval=2, no_save_optim=True, train_iters=2, lr=0.5, **layout)
    run = pretrain(ranks, *flags)
    return {figure: run.series(figure) for figure in FIGURES}


def exported(folder, name, policy):
    export_hf(folder / name, folder / policy / "hf", folder / f"hf_{name}")
    return load_file(folder / f"hf_{name}" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(folder):
    """Each policy trained on one rank: its figures and the exported tensors."""
    results = {}
    for policy in POLICIES:
        figures = train(folder, policy, f"{policy}_alone", 1)
        results[policy] = Trained(figures, exported(folder, f"{policy}_alone", policy))
    return results


def assert_trained_alike(folder, policy, figures, tensors, expected):
    for name in FIGURES:
        assert len(figures[name]) == 2
        assert figures[name] == pytest.approx(expected.figures[name], rel=2e-5, abs=2e-6), name
    start = load_file(folder / f"hf_{policy}" / "model.safetensors")
    assert ("lm_head.weight" in start) == (policy == "olmo3") and tensors.keys() == start.keys()
    for name, value in expected.tensors.items():
        moved = (value - start[name]).abs().max()
        assert moved > 0 and (tensors[name] - value).abs().max() < 2e-3 * moved, name


def test_a_new_user_brings_smollm3_trains_it_on_two_stages_of_two_ranks_and_takes_it_home(folder, alone):
    figures = train(folder, "smollm3", "trained", 4, tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    out = folder / "home"
    done = run_command(
        [
            "python",
            ROOT / "tools/export_hf.py",
            "--megatron",
            folder / "trained",
            "--hf-template",
            folder / "smollm3" / "hf",
            "--out",
            out,
        ]
    )
    assert done.returncode == 0, done.output
    assert_trained_alike(folder, "smollm3", figures, load_file(out / "model.safetensors"), alone["smollm3"])
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "bana"}], tokenize=False) == "bana"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompt = torch.tensor([tokenizer("bana tida")["input_ids"]])
    assert model.generate(prompt, max_new_tokens=5, min_new_tokens=5).shape[1] == prompt.shape[1] + 5


@pytest.mark.parametrize(
    ("policy", "layout"),
    [("youtu", "pipeline"), ("olmo3", "pipeline"), ("qwen2", "pipeline"), ("qwen2", "tensor")],
)
def test_a_policy_trains_on_two_ranks_as_on_one(folder, alone, policy, layout):
    """OLMo-3's rows are longer than its window and than YaRN's original length. Qwen2's embeddings are tied across the
    pipeline's ends, and its biases are split over tensor-parallel ranks."""
    name = f"{policy}_{layout}"
    figures = train(folder, policy, name, 2, **{f"{layout}_model_parallel_size": 2})
    assert_trained_alike(folder, policy, figures, exported(folder, name, policy), alone[policy])


def test_a_reference_of_another_family_keeps_its_own_shape(alone):
    """All policies see the same tokens, so the frozen SmolLM3 must score them alike with each."""
    for policy in ("youtu", "olmo3", "qwen2"):
        assert alone[policy].figures["reference nll"] == alone["smollm3"].figures["reference nll"]
        assert alone[policy].figures["lm loss"] != alone["smollm3"].figures["lm loss"]
