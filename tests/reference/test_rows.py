"""A reference whose embedding has other rows than the policy's scores as the one without them, bit for bit."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.reference.model import _with_plain_strides
from tests.conftest import VOCABULARY, write_documents
from tests.hf_models import make_tokenizer
from tests.ranks import pretrain

LENGTH, SEQUENCES = 24, 8
LAYOUTS = {"one rank": (1, {}), "TP2": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True})}


def resized(source, target, rows, garbage=False):
    """``source`` with this many rows, as ``resize_token_embeddings`` makes them (near the mean), or with garbage."""
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(rows, mean_resizing=not garbage)
        if garbage:
            with torch.no_grad():
                model.get_input_embeddings().weight[VOCABULARY:].normal_(0.0, 5.0)
                model.get_output_embeddings().weight[VOCABULARY:].normal_(0.0, 5.0)
    model.save_pretrained(target)
    make_tokenizer(target, VOCABULARY)
    imported = target.with_name(f"{target.name}_mg")
    import_hf(target, imported)
    return imported


@pytest.fixture(scope="module")
def more_rows(material, tmp_path_factory):
    """The reference with 576 and 700 rows: at TP2 these are padded to other numbers than the policy's 515."""
    folder, source = tmp_path_factory.mktemp("more_rows"), material.policy.parent / "hf_reference"
    return [resized(source, folder / "mean", 576), resized(source, folder / "garbage", 700, garbage=True)]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_the_policy_lacks_change_no_bit_of_any_objective(layout, material, more_rows, tmp_path, monkeypatch):
    """RHO-1 in each scope, KD and ReMiT, each scored by every reference; the policy itself is one, for contrast."""
    ranks, overrides = LAYOUTS[layout]
    references = [str(folder) for folder in (material.reference, *more_rows, material.policy)]
    figures = tmp_path / "figures.json"
    for name, value in {"PLAN": "one reference", "REFERENCES": ":".join(references), "FIGURES": figures}.items():
        monkeypatch.setenv(name, str(value))
    flags = material.flags(
        objective="rho1", reference_load=references[0], train_iters=5, lr=0.0, clip_grad=1.0, **overrides
    )
    pretrain(ranks, *flags, module="tests.reference.same_losses")
    steps = json.loads(figures.read_text())
    assert [set(step) for step in steps] == [set(references)] * 5
    for step in steps:
        plain, *same, other = (step[folder] for folder in references)
        assert same == [plain, plain] and "lm loss" in plain
        assert all(plain[name] != other[name] for name in plain.keys() - {"lm loss", "kept share"})


@pytest.mark.slow
def test_a_larger_policys_nll_is_over_its_rows_and_the_divergence_over_those_of_both(material, tmp_path):
    sources = material.policy.parent / "hf_policy", material.policy.parent / "hf_reference"
    policy = resized(sources[0], tmp_path / "policy", 700, garbage=True)
    # One step reads the whole corpus, so shuffling it changes no sum.
    text = torch.randint(2, VOCABULARY, (LENGTH * SEQUENCES + 1,), generator=torch.Generator().manual_seed(4))
    write_documents(tmp_path / "corpus", [text])
    changes = {"load": policy, "tokenizer_model": policy / "hf", "data_path": tmp_path / "corpus", "train_iters": 1}
    run = pretrain(1, *material.remit(objective="kd", kd_alpha=0.7, seq_length=LENGTH, **changes))
    tokens_BS, labels_BS = text[:-1].view(SEQUENCES, LENGTH), text[1:].view(SEQUENCES, LENGTH)
    student_BSV, teacher_BSV = logits(tmp_path / "policy", tokens_BS), logits(sources[1], tokens_BS)
    nll = -student_BSV.log_softmax(-1).gather(-1, labels_BS[..., None]).mean().item()
    student_BSV, teacher_BSV = student_BSV[..., :VOCABULARY].log_softmax(-1), teacher_BSV.log_softmax(-1)
    divergence = (teacher_BSV.exp() * (teacher_BSV - student_BSV)).sum(-1).mean().item()
    assert run.series("lm loss") == pytest.approx([nll], rel=2e-5)
    assert run.series("reference kl") == pytest.approx([divergence], rel=2e-5)
    assert run.series("kd loss") == pytest.approx([0.3 * nll + 0.7 * divergence], rel=2e-5)


def logits(folder, tokens_BS):
    """By transformers, [B, S, V] float64."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).double().eval()(tokens_BS).logits


def test_one_sequence_alone_takes_the_products_of_the_policy():
    """torch.matmul makes another product where strides are not plain and the weight has no gradient. Here 320 of 576
    columns gave other bits on one processor (SmolLM2's projection at TP3), and its delta was not 0."""
    turned_SBH = torch.randn(1, 288, 576).transpose(0, 1).contiguous()
    assert turned_SBH.stride() == (576, 288 * 576, 1)
    plain_SBH = _with_plain_strides(None, (), turned_SBH)
    assert plain_SBH.stride() == (576, 576, 1) and plain_SBH.data_ptr() == turned_SBH.data_ptr()
    weight = torch.randn(320, 576)
    trained = torch.matmul(turned_SBH, weight.clone().requires_grad_().t())
    assert torch.equal(torch.matmul(plain_SBH, weight.t()), trained)
