"""The imported OLMo-2 computes what transformers' Olmo2ForCausalLM computes, at every parallel layout."""

import pytest
import torch

from megatron_remit.convert.hf_to_megatron import import_hf
from tests.hf_models import make_olmo2
from tests.ranks import run_ranks
from tests.specs.olmo2_ranks import LAYOUTS, compare_layouts

CASES = {
    "grouped_query": {"num_key_value_heads": 2},
    "every_head_its_own_key": {"num_key_value_heads": 4, "vocab_size": 512},
}


def _store_truth(folder, overrides):
    """HF's logits and gradients for a random linear functional of the logits, both imported as checkpoints."""
    model = make_olmo2(folder / "hf", tokenizer=False, **overrides)
    ids = torch.randint(0, model.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(3))
    direction = torch.randn(2, 16, model.config.vocab_size, generator=torch.Generator().manual_seed(4))
    logits = model(ids).logits
    (logits * direction).sum().backward()
    import_hf(folder / "hf", folder / "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(folder / "hf_gradients")
    import_hf(folder / "hf_gradients", folder / "gradients")
    torch.save({"ids": ids, "direction": direction, "logits": logits.detach()}, folder / "truth.pt")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """One start of two gloo ranks serves every test here."""
    folder = tmp_path_factory.mktemp("olmo2")
    for case, overrides in CASES.items():
        (folder / case).mkdir()
        _store_truth(folder / case, overrides)
    run_ranks(2, compare_layouts, folder, list(CASES))
    return [torch.load(folder / f"report{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(reports, case, layout):
    differences = [report[case, layout]["logits"] for report in reports if "logits" in report[case, layout]]
    assert differences and max(differences) < 1e-5


@pytest.mark.parametrize("layout", ["tp2", "tp2_sequence_parallel"])
@pytest.mark.parametrize("case", CASES)
def test_every_gradient_is_that_of_transformers(reports, case, layout):
    for report in reports:
        gradients = {name: value for name, value in report[case, layout].items() if name != "logits"}
        assert any("q_norm" in name for name in gradients) and any("post_norm" in name for name in gradients)
        assert max(gradients.values()) < 1e-4, gradients
