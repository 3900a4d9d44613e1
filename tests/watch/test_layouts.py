"""Every layout, and a run from a score store, logs by source what one rank does."""

import pytest

from tests.watch.blend import EVERY_STEP, run, write_blend

# Some steps, microbatches of both sources in each, with the learning rate of the parity tests.
SHORT = EVERY_STEP | {"exit_interval": 3, "lr": 0.1}
LAYOUTS = {
    "TP2": {"tensor_model_parallel_size": 2},
    "PP2": {"pipeline_model_parallel_size": 2},
    "CP2": {"context_parallel_size": 2},
    "DP2": {},
}


@pytest.fixture(scope="module")
def blend(tmp_path_factory):
    return write_blend(tmp_path_factory.mktemp("blend"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("stores") / "store"


@pytest.fixture(scope="module")
def one_rank(material, blend, store, tmp_path_factory):
    """Scored online; it also fills the store."""
    writes = {"score_store": store, "score_store_write": True, "score_miss": "online", "score_dtype": "float32"}
    return run(material, blend, tmp_path_factory.mktemp("one_rank"), **SHORT | writes)


def assert_same(found, expected):
    tags = {tag for tag in expected.scalars if tag.startswith("remit/")}
    assert {tag for tag in found.scalars if tag.startswith("remit/")} == tags
    assert sum("source/" in tag for tag in tags) == 2 * 2 * 5
    for tag in tags - {
        f"remit/{name}{end}" for name in ("reference share", "tokens per second") for end in ("", " vs tokens")
    }:
        assert len(found.scalars[tag]) == 3
        steps, values = zip(*found.scalars[tag], strict=True)
        expected_steps, expected_values = zip(*expected.scalars[tag], strict=True)
        assert steps == expected_steps
        assert values == pytest.approx(expected_values, rel=2e-5, abs=5e-6), tag
    for tag, drawn in expected.histograms.items():
        for own, other in zip(found.histograms[tag], drawn, strict=True):
            own, other = own.histogram_value, other.histogram_value
            assert own.num == other.num
            assert (own.sum, own.sum_squares) == pytest.approx((other.sum, other.sum_squares), rel=1e-5, abs=1e-4)
    assert_same_tokens(found.tokens, expected.tokens)


def assert_same_tokens(found, expected):
    assert len(found) == len(expected) == 3 * 20
    for own, other in zip(found, expected, strict=True):
        for name in ("weight", "delta", "nll"):
            assert own[name] == pytest.approx(other[name], rel=2e-5, abs=5e-6)
        rest = [name for name in other if name not in ("weight", "delta", "nll")]
        assert [own[name] for name in rest] == [other[name] for name in rest]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_logs_what_one_rank_does(layout, material, blend, one_rank, tmp_path):
    assert_same(run(material, blend, tmp_path, ranks=2, **SHORT | LAYOUTS[layout]), one_rank)


def test_a_run_from_a_score_store_logs_what_one_online_does(material, blend, store, one_rank, tmp_path):
    found = run(material, blend, tmp_path, **SHORT | {"score_store": store, "reference_load": None})
    assert_same(found, one_rank)
