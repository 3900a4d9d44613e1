"""A reference of another family and size than the policy: an OLMo-2 policy scored by a deeper, wider SmolLM3.

Its hidden states, which distillation keeps, are twice as wide as the policy's and its output layer is its embedding.
"""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_remit.convert.hf_to_megatron import import_hf
from tests.conftest import VOCABULARY, write_documents
from tests.hf_models import make_model
from tests.ranks import pretrain
from tests.test_objectives_in_training import assert_same_weights, train_plan
from tests.test_parallel_parity import FIGURES, assert_same, train

LENGTH, SEQUENCES, END, EPSILON = 24, 8, 0, 0.2
LAYOUTS = {
    # Megatron's own local layers refuse it: the reference has the torch-native ones.
    "TP2 with sequence parallelism": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_model_parallel_size": 2},
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Hidden 64 against 32, 6 layers against 4, 16 heads against 4, tied embeddings against untied, NoPE layers."""
    folder = tmp_path_factory.mktemp("reference")
    make_model("smollm3", folder / "hf_source", seed=3, vocab_size=VOCABULARY, num_hidden_layers=6)
    import_hf(folder / "hf_source", folder / "weights")
    return folder


@pytest.fixture(scope="module")
def one_rank(material, reference, tmp_path_factory):
    return train(material, tmp_path_factory.mktemp("one_rank"), 1, reference_load=reference / "weights")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_equal_those_of_one_rank(layout, material, reference, tmp_path, one_rank):
    found = train(material, tmp_path, 2, reference_load=reference / "weights", **LAYOUTS[layout])
    assert_same(found, one_rank)


@pytest.fixture(scope="module")
def one_rank_objectives(material, reference, tmp_path_factory):
    """RHO-1 in each scope, KD and the permuted control."""
    folder = tmp_path_factory.mktemp("one_rank_objectives")
    return train_plan(material, "all", folder, reference_load=reference / "weights"), folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_other_objectives_equal_those_of_one_rank(layout, material, reference, one_rank_objectives, tmp_path):
    expected, folder = one_rank_objectives
    run = train_plan(material, "all", tmp_path, 2, reference_load=reference / "weights", **LAYOUTS[layout])
    for name in ("lm loss", "rho1 loss", "kept delta mean", "kd loss", "reference kl", "remit loss"):
        assert run.series(name) and run.series(name) == pytest.approx(expected.series(name), rel=2e-5, abs=2e-6), name
    assert_same_weights(tmp_path, folder)


def token_logp(folder, tokens):
    """Log-probabilities over the vocabulary by transformers, [S, V] float64; every document is read alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    ends = [t + 1 for t, token in enumerate(tokens) if token == END]
    parts, start = [], 0
    for end in [*ends, len(tokens)]:
        if end > start:
            with torch.no_grad():
                parts.append(model(torch.tensor([tokens[start:end]])).logits[0])
        start = end
    return torch.cat(parts).log_softmax(dim=-1)


def token_nll(folder, tokens, labels):
    """NLL of each label, [S] float64."""
    return torch.nn.functional.nll_loss(token_logp(folder, tokens), torch.tensor(labels), reduction="none")


def expected_figures(corpus, policy, reference):
    """The step's figures from the equations, token by token. END as input is masked; END as label ends a document."""
    rows = []
    for first in range(0, LENGTH * SEQUENCES, LENGTH):
        tokens, labels = corpus[first : first + LENGTH], corpus[first + 1 : first + LENGTH + 1]
        nll, reference_nll = (token_nll(folder, tokens, labels).tolist() for folder in (policy, reference))
        gaps: dict[int, list[float]] = {}
        document, places = 0, []
        for t in range(LENGTH):
            places.append(document)
            if tokens[t] != END:
                gaps.setdefault(document, []).append(nll[t] - reference_nll[t])
            document += labels[t] == END
        for t in range(LENGTH):
            if tokens[t] == END:
                continue
            mean = sum(gaps[places[t]]) / len(gaps[places[t]])
            weight = 2 / (1 + math.exp(mean - nll[t] + reference_nll[t]))
            clipped = min(max(weight, 1 - EPSILON), 1 + EPSILON)
            rows.append(
                [
                    nll[t],
                    clipped * nll[t],
                    reference_nll[t],
                    clipped,
                    clipped**2,
                    weight < 1 - EPSILON,
                    weight > 1 + EPSILON,
                ]
            )
    lm, remit, other, mean, square, low, high = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return dict(zip(FIGURES, (lm, remit, other, mean, (square - mean**2) ** 0.5, low, high), strict=True))


@pytest.fixture(scope="module")
def first_step(material, reference, tmp_path_factory):
    """A run of one step with document masks. The corpus is one step long, so that shuffling it changes no sum."""
    prefix = tmp_path_factory.mktemp("corpus") / "corpus"
    draw = torch.Generator().manual_seed(4)
    corpus = torch.randint(1, VOCABULARY, (LENGTH * SEQUENCES + 1,), generator=draw)
    corpus[torch.rand(corpus.shape, generator=draw) < 0.15] = END
    write_documents(prefix, [corpus])

    def run(**overrides):
        return pretrain(
            1,
            *material.remit(
                reference_load=reference / "weights",
                data_path=prefix,
                train_iters=1,
                seq_length=LENGTH,
                global_batch_size=SEQUENCES,
                reset_attention_mask=True,
                **overrides,
            ),
        )

    return corpus, run


@pytest.mark.slow
def test_the_first_step_is_that_of_the_equations_on_transformers_losses(first_step, material, reference):
    """With means by document."""
    corpus, train_step = first_step
    run = train_step(remit_centering="document")
    expected = expected_figures(corpus.tolist(), material.policy.parent / "hf_policy", reference / "hf_source")
    for name in FIGURES:
        assert run.series(name) == pytest.approx([expected[name]], rel=2e-5, abs=2e-6), name


@pytest.mark.slow
def test_rho1_is_the_mean_of_the_tokens_with_the_highest_excess_by_transformers(first_step, material, reference):
    corpus, train_step = first_step
    run = train_step(objective="rho1", rho1_keep_ratio=0.6)
    kept = []
    for first in range(0, LENGTH * SEQUENCES, LENGTH):
        tokens, labels = corpus[first : first + LENGTH].tolist(), corpus[first + 1 : first + LENGTH + 1].tolist()
        nll, reference_nll = (
            token_nll(folder, tokens, labels).tolist()
            for folder in (material.policy.parent / "hf_policy", reference / "hf_source")
        )
        read = [t for t in range(LENGTH) if tokens[t] != END]
        read.sort(key=lambda t: reference_nll[t] - nll[t])
        kept += [nll[t] for t in read[: round(0.6 * len(read))]]
    assert run.series("rho1 loss") == pytest.approx([sum(kept) / len(kept)], rel=2e-5)


@pytest.mark.slow
def test_distillation_is_the_divergence_of_transformers_distributions(first_step, material, reference):
    corpus, train_step = first_step
    run = train_step(objective="kd", kd_alpha=0.7, kd_temperature=2.0)
    losses, divergences, policy = [], [], material.policy.parent / "hf_policy"
    for first in range(0, LENGTH * SEQUENCES, LENGTH):
        tokens, labels = corpus[first : first + LENGTH].tolist(), corpus[first + 1 : first + LENGTH + 1]
        student_SV, teacher_SV = (
            (token_logp(folder, tokens) / 2.0).log_softmax(dim=-1) for folder in (policy, reference / "hf_source")
        )
        divergence_S = (teacher_SV.exp() * (teacher_SV - student_SV)).sum(dim=-1)
        loss_S = 0.3 * token_nll(policy, tokens, labels.tolist()) + 0.7 * 4.0 * divergence_S
        read_S = corpus[first : first + LENGTH] != END
        losses.append(loss_S[read_S])
        divergences.append(divergence_S[read_S])
    assert run.series("reference kl") == pytest.approx([torch.cat(divergences).mean().item()], rel=2e-5)
    assert run.series("kd loss") == pytest.approx([torch.cat(losses).mean().item()], rel=2e-5)
