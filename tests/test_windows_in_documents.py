"""OLMo-3 under document masks: the losses are those of transformers, which reads each document of a row alone.

Windows, document borders and the two chunks of a context-parallel rank all cut the same attention. B rows, S tokens.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_remit.convert.hf_to_megatron import import_hf
from tests.conftest import VOCABULARY, Material, write_documents
from tests.hf_models import make_model
from tests.ranks import pretrain

ROWS, LENGTH, END = 8, 24, 0
DOCUMENTS = {"reset_attention_mask": True, "reset_position_ids": True}


@pytest.fixture(scope="module")
def olmo3(tmp_path_factory):
    """Two models with windows of 6 and 5, one key/value head and YaRN from 16 tokens on; one step reads the corpus."""
    folder = tmp_path_factory.mktemp("olmo3")
    for name, window, groups in (("policy", 6, 1), ("reference", 5, 4)):
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": groups}
        make_model("olmo3", folder / f"hf_{name}", seed=window, sliding_window=window, **shape)
        import_hf(folder / f"hf_{name}", folder / name)
    draw = torch.Generator().manual_seed(4)
    text = torch.randint(2, VOCABULARY, (ROWS * LENGTH + 1,), generator=draw)
    text[torch.rand(len(text), generator=draw) < 0.06] = END
    write_documents(folder / "corpus", [text])
    return Material(folder / "policy", folder / "reference", folder / "corpus"), text


def mean_nll(folder, text, by_document):
    """Over the tokens that do not follow an end of document, by transformers in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    found = []
    for row in range(ROWS):
        tokens_S, labels_S = (text[row * LENGTH + shift :][:LENGTH] for shift in (0, 1))
        ends = (tokens_S == END).nonzero().flatten().tolist() if by_document else []
        lengths = torch.tensor([0, *(end + 1 for end in ends), LENGTH]).diff().tolist()
        for tokens, labels in zip(tokens_S.split(lengths), labels_S.split(lengths), strict=True):
            if len(tokens):
                with torch.no_grad():
                    nll = torch.nn.functional.cross_entropy(model(tokens[None]).logits[0], labels, reduction="none")
                found.append(nll[tokens != END])
    return torch.cat(found).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("by_document", [True, False])
def test_the_losses_at_two_context_parallel_ranks_are_those_of_transformers(by_document, olmo3):
    material, text = olmo3
    flags = {"seq_length": LENGTH, "train_iters": 1, "context_parallel_size": 2} | (DOCUMENTS if by_document else {})
    run = pretrain(2, *material.remit(**flags))
    for tag, folder in (("lm loss", material.policy), ("reference nll", material.reference)):
        expected = mean_nll(folder.parent / f"hf_{folder.name}", text, by_document)
        assert run.series(tag) == pytest.approx([expected], rel=2e-6), tag
    assert len(text[text == END]) >= ROWS
