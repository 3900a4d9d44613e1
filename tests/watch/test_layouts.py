"""Every layout, and a run from a score store, logs by source what one rank does."""

import pytest

from tests.watch.blend import EVERY_STEP, run

STEPS = 3
SHORT = EVERY_STEP | {"exit_interval": STEPS}
LAYOUTS = {
    "TP2": {"tensor_model_parallel_size": 2},
    "PP2": {"pipeline_model_parallel_size": 2},
    "CP2": {"context_parallel_size": 2},
    "DP2": {},
}


def assert_same(found, expected):
    """A run's figures equal those of the first steps of ``expected``, but those that depend on time."""
    tags = {tag for tag in expected.scalars if tag.startswith("remit/")}
    assert {tag for tag in found.scalars if tag.startswith("remit/")} == tags
    assert sum("source/" in tag for tag in tags) == 2 * 2 * 5
    for tag in tags:
        if "reference share" in tag or "tokens per second" in tag:
            continue
        steps, values = zip(*found.scalars[tag], strict=True)
        expected_steps, expected_values = zip(*expected.scalars[tag][:STEPS], strict=True)
        assert steps == expected_steps
        assert values == pytest.approx(expected_values, rel=2e-5, abs=5e-6), tag
    for tag, drawn in expected.histograms.items():
        for own, other in zip(found.histograms[tag], drawn[:STEPS], strict=True):
            own, other = own.histogram_value, other.histogram_value
            assert own.num == other.num
            assert (own.sum, own.sum_squares) == pytest.approx((other.sum, other.sum_squares), rel=1e-5, abs=1e-4)
    assert_same_tokens(found.tokens, expected.tokens[: STEPS * 20])


def assert_same_tokens(found, expected):
    assert len(found) == len(expected) == STEPS * 20
    for own, other in zip(found, expected, strict=True):
        for name in ("weight", "delta", "nll"):
            assert own[name] == pytest.approx(other[name], rel=2e-5, abs=5e-6)
        rest = [name for name in other if name not in ("weight", "delta", "nll")]
        assert [own[name] for name in rest] == [other[name] for name in rest]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_logs_what_one_rank_does(layout, material, blend, watched, tmp_path):
    assert_same(run(material, blend, tmp_path, ranks=2, **SHORT | LAYOUTS[layout]), watched[0])


def test_a_run_from_a_score_store_logs_what_one_online_does(material, blend, store, watched, tmp_path):
    found = run(material, blend, tmp_path, **SHORT | {"score_store": store, "reference_load": None})
    assert_same(found, watched[0])
