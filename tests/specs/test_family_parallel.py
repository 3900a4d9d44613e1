"""Every imported model computes what transformers' own class computes, at every parallel layout.

The model is built as a run builds it: its shape from the checkpoint, its layers by default.
"""

import pytest
import torch

from megatron_remit.convert.hf_to_megatron import import_hf
from tests.hf_models import LLAMA3_ROPE, SHAPES, YARN_ROPE, make_model
from tests.ranks import run_ranks
from tests.specs.family_ranks import LAYOUTS, compare_layouts

pytestmark = pytest.mark.slow

# As DeepSeek-V3 has it: the softmax is scaled too.
LATENT_YARN_ROPE = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 5000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    }
}
# 515 tokens need padding at every tensor-parallel size, 640 are padded by TP2 alone (to a multiple of 2 x 128).
CASES = {family: (family, {}) for family in SHAPES} | {
    "olmo2_every_head_its_own_key": ("olmo2", {"num_key_value_heads": 4, "vocab_size": 640, "rms_norm_eps": 1e-6}),
    "llama_rope_scaling": ("llama", LLAMA3_ROPE | {"tie_word_embeddings": True}),
    "llama_every_head_its_own_key": ("llama", {"num_key_value_heads": 8, "vocab_size": 640}),
    "olmo3_plain_rope_everywhere": (
        "olmo3",
        {
            "rope_parameters": None,
            "num_key_value_heads": 10,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "qwen2_untied_with_yarn": ("qwen2", {"tie_word_embeddings": False} | YARN_ROPE),
    "qwen3_untied": ("qwen3", {"tie_word_embeddings": False}),
    "smollm3_uneven_nope": ("smollm3", {"no_rope_layers": [0, 1, 1, 0], "vocab_size": 640}),
    "qwen3_moe_some_dense_layers_and_yarn": (
        "qwen3_moe",
        {"mlp_only_layers": [1, 2], "norm_topk_prob": False} | YARN_ROPE,
    ),
    "olmoe_grouped_and_renormalised": ("olmoe", {"num_key_value_heads": 2, "norm_topk_prob": True, "vocab_size": 640}),
    "youtu_untied": ("youtu", {"tie_word_embeddings": False, "v_head_dim": 6}),
    "youtu_yarn": ("youtu", LATENT_YARN_ROPE),
}
LENGTH = 32  # longer than OLMo-3's window and than the original lengths of YaRN
EXPERTS = [case for case, (family, _) in CASES.items() if family in ("qwen3_moe", "olmoe")]
# Megatron runs experts under tensor parallelism with sequence parallelism only.
NOT_RUN = [(case, "tp2") for case in EXPERTS] + [(case, "ep2") for case in CASES if case not in EXPERTS]
VARIANTS_RUN = ("tp1", "tp2", "ep2")
# Each family runs at every layout that it can, its variants on one rank and on two.
RUNS = [
    (case, layout)
    for case in CASES
    for layout in LAYOUTS
    if (case in SHAPES or layout in VARIANTS_RUN) and (case, layout) not in NOT_RUN
]


def _store_truth(folder, family, overrides):
    """HF's logits and gradients for a random linear functional of the logits, both imported as checkpoints."""
    model = make_model(family, folder / "hf", tokenizer=False, **overrides)
    vocabulary = model.config.vocab_size
    ids, labels = torch.randint(0, vocabulary, (2, 2, LENGTH), generator=torch.Generator().manual_seed(3))
    direction = torch.randn(2, LENGTH, vocabulary, generator=torch.Generator().manual_seed(4))
    logits = model(ids).logits
    (logits * direction).sum().backward()
    nll = torch.nn.functional.cross_entropy(logits.detach().transpose(1, 2), labels, reduction="none")
    import_hf(folder / "hf", folder / "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(folder / "hf_gradients")
    import_hf(folder / "hf_gradients", folder / "gradients")
    truth = {"ids": ids, "labels": labels, "direction": direction, "logits": logits.detach(), "nll": nll}
    torch.save(truth, folder / "truth.pt")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """One start of two gloo ranks serves every test here."""
    folder = tmp_path_factory.mktemp("families")
    for case, (family, overrides) in CASES.items():
        (folder / case).mkdir()
        _store_truth(folder / case, family, overrides)
    run_ranks(2, compare_layouts, folder, RUNS)
    return [torch.load(folder / f"report{rank}.pt") for rank in range(2)]


def _on_last_stage(reports, case, layout):
    found = [report[case, layout] for report in reports if "logits" in report[case, layout]]
    assert found
    return found


@pytest.mark.parametrize(("case", "layout"), RUNS)
def test_logits_are_those_of_transformers(reports, case, layout):
    assert max(report["logits"] for report in _on_last_stage(reports, case, layout)) < 1e-5


@pytest.mark.parametrize(("case", "layout"), RUNS)
def test_padding_rows_take_no_probability(reports, case, layout):
    for report in _on_last_stage(reports, case, layout):
        if report["padding"]:
            assert report["largest padding logit"] == float("-inf")
        assert report["nll"] < 1e-5


def test_the_vocabulary_is_padded_where_it_has_to_be(reports):
    for case, layout, rows in (
        ("smollm3", "tp1", 125),
        ("smollm3", "tp2", 253),
        ("smollm3", "pp2", 125),
        ("smollm3_uneven_nope", "tp1", 0),
        ("smollm3_uneven_nope", "tp2", 128),
    ):
        assert _on_last_stage(reports, case, layout)[0]["padding"] == rows


@pytest.mark.parametrize(("case", "layout"), [run for run in RUNS if not run[1].startswith("pp")])
def test_every_gradient_is_that_of_transformers(reports, case, layout):
    for report in reports:
        gradients = report[case, layout]["gradients"]
        assert sum("norm" in name for name in gradients) >= 9
        assert max(gradients.values()) < 1e-4, gradients
