"""30 steps of a blend: every figure under ``remit/`` is what a plain loop over the same rows computes."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.watch.blend import BORDER, STEPS, STILL, run

ROWS_OF_STEP, LENGTH, EPSILON = 8, 24, 0.2
SOURCES = ("low", "high")
BY_SOURCE = ("lm loss", "weight mean", "delta mean", "clipped share")


@pytest.fixture(scope="module")
def by_hand(material, watched):
    """Of each step its tokens that count: dicts of source, nll, delta, weight, clipped."""
    folder = material.policy.parent
    models = [AutoModelForCausalLM.from_pretrained(folder / name).float() for name in ("hf_policy", "hf_reference")]
    _, rows = watched
    assert len(rows) >= STEPS * ROWS_OF_STEP
    steps = []
    for step in range(STEPS):
        found = []
        for row in rows[step * ROWS_OF_STEP : (step + 1) * ROWS_OF_STEP]:
            tokens, labels = torch.tensor([row["tokens"]]), torch.tensor(row["labels"])
            with torch.no_grad():
                logs = [model(tokens).logits[0].log_softmax(-1) for model in models]
            policy, reference = (-log.gather(1, labels.unsqueeze(1)).squeeze(1) for log in logs)
            counts = [place for place, value in enumerate(row["loss_mask"]) if value]
            delta = policy - reference
            mean = sum(delta[place].item() for place in counts) / len(counts)
            source = "high" if max(row["tokens"]) >= BORDER else "low"
            for place in counts:
                raw = 2 / (1 + math.exp(mean - delta[place].item()))
                clipped = not 1 - EPSILON <= raw <= 1 + EPSILON
                weight = min(max(raw, 1 - EPSILON), 1 + EPSILON)
                values = {"lm loss": policy[place].item(), "delta mean": delta[place].item()}
                values["delta negative"] = float(delta[place] < 0)
                values |= {"weight mean": weight, "clipped share": float(clipped), "token": labels[place].item()}
                found.append(values | {"source": source, "position": place})
        steps.append(found)
    return steps


def average(tokens, name):
    return sum(token[name] for token in tokens) / len(tokens)


def values(watched, tag):
    return [value for _, value in watched.scalars[f"remit/{tag}"]]


def test_figures_of_each_source_are_those_of_a_plain_loop(watched, by_hand):
    found, _ = watched
    for source in SOURCES:
        own = [[token for token in step if token["source"] == source] for step in by_hand]
        assert all(own), "each step has rows of both sources"
        for name in BY_SOURCE:
            expected = [average(tokens, name) for tokens in own]
            tolerance = 2e-3 if name == "clipped share" else 2e-6
            assert values(found, f"source/{source}/{name}") == pytest.approx(expected, rel=2e-5, abs=tolerance), name
        shares = [len(tokens) / len(step) for tokens, step in zip(own, by_hand, strict=True)]
        assert values(found, f"source/{source}/share") == pytest.approx(shares, rel=1e-6)
    assert sum(values(found, "source/high/share")) / STEPS == pytest.approx(0.75, abs=0.03)


def test_megatrons_tags_are_there_as_before_and_under_remit(watched, by_hand):
    found, _ = watched
    own = ("lm loss", "remit loss", "reference nll", "delta mean", "delta negative", "weight mean", "weight std")
    for name in (*own, "effective share", "clipped low", "clipped high", "reference share", "tokens per second"):
        assert found.scalars[name] == found.scalars[f"remit/{name}"], name
        assert [step for step, _ in found.scalars[name]] == list(range(1, STEPS + 1))
    one_token = 1 / min(map(len, by_hand))
    for name, tolerance in (
        ("lm loss", 2e-6),
        ("delta mean", 2e-6),
        ("weight mean", 2e-6),
        ("delta negative", one_token),
    ):
        expected = [average(step, name) for step in by_hand]
        assert values(found, name) == pytest.approx(expected, rel=1e-5, abs=tolerance), name
    assert any(abs(value - 0.5) > one_token for value in expected), "the sign of delta shows"
    below = [value for source in SOURCES for value in values(found, f"source/{source}/delta mean") if value < 0]
    assert below, "negative means are logged where the others are"


def test_every_curve_is_over_tokens_too(watched):
    found, _ = watched
    tags = [tag for tag in found.scalars if tag.startswith("remit/") and not tag.endswith(" vs tokens")]
    assert len(tags) == 12 + 1 + 2 * 5
    for tag in tags:
        tokens = [(step * ROWS_OF_STEP * LENGTH, value) for step, value in found.scalars[tag]]
        assert found.scalars[f"{tag} vs tokens"] == tokens, tag


def test_the_effective_rate_is_the_rate_times_the_mean_weight(watched):
    found, _ = watched
    expected = [STILL["lr"] * mean for mean in values(found, "weight mean")]
    assert values(found, "effective learning-rate") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["weight", "delta"])
def test_histograms_hold_every_token_once_in_its_bin(name, watched, by_hand):
    found, _ = watched
    drawn = found.histograms[f"remit/histogram/{name}"]
    assert [one.step for one in drawn] == list(range(1, STEPS + 1))
    for one, step in zip(drawn, by_hand, strict=True):
        histogram, figures = one.histogram_value, [token[f"{name} mean"] for token in step]
        assert histogram.num == len(step)
        assert histogram.sum == pytest.approx(sum(figures), rel=1e-4, abs=1e-4)
        # TensorBoard drops empty bins at the ends; each limit is the upper end of its bin.
        below = 0
        for limit, count in zip(histogram.bucket_limit, histogram.bucket, strict=True):
            below += count
            near = sum(abs(value - limit) < 1e-4 for value in figures)
            assert abs(below - sum(value < limit for value in figures)) <= near


def test_the_heaviest_and_lightest_tokens_are_named_with_their_context(watched, by_hand):
    found, rows = watched
    assert len(found.tokens) == STEPS * 20
    for step in (1, STEPS):
        chosen = [record for record in found.tokens if record["step"] == step]
        for direction, highest in (("up", True), ("down", False)):
            order = sorted(by_hand[step - 1], key=lambda token: (token["weight mean"], token["delta mean"]))
            expected = order[::-1][:10] if highest else order[:10]
            records = [record for record in chosen if record["direction"] == direction]
            assert [record["rank"] for record in records] == list(range(1, 11))
            for record, token in zip(records, expected, strict=True):
                assert (record["source"], record["position"], record["token_id"]) == (
                    token["source"],
                    token["position"],
                    token["token"],
                )
                assert record["delta"] == pytest.approx(token["delta mean"], abs=1e-4)
                labels = rows[record["sample"]]["labels"]
                assert labels[record["position"]] == record["token_id"]
    (_, table), *_ = found.texts["remit/tokens up/text_summary"]
    assert f"**[{found.tokens[0]['token']}]**" in table


def test_a_reference_that_is_the_policy_is_said_once(material, blend, tmp_path):
    same = {"reference_load": material.policy, "watch_patience": 2, "train_iters": 5}
    found = run(material, blend, tmp_path, **same)
    lines = [line for line in found.output.splitlines() if "warning: step " in line]
    assert len(lines) == 1 and "warning: step 2: weight std 0 has been below" in lines[0], found.output
    ((step, text),) = found.texts["remit/warnings/text_summary"]
    assert step == 2 and text in lines[0]
