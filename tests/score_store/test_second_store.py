"""A second score store: the NLLs of the reference's base, for the objectives that compare two frozen models."""

import numpy
import pytest

from megatron_remit import cpu
from megatron_remit.argument_checks import check_arguments
from megatron_remit.errors import UserError
from megatron_remit.score_store.manifest import Manifest, create_manifest, read_manifest
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.writer import StoreWriter
from megatron_remit.scoring import session
from megatron_remit.scoring.dataset import ScoredDataset
from tests.ranks import pretrain
from tests.score_store.programs import rows_of, score
from tests.score_store.synthetic import make_store, nll
from tests.score_store.test_run_flags import arguments
from tests.score_store.test_scored_dataset import Samples, store_sample
from tests.test_bad_input import parsed

cpu.install()

FIGURES = ("lm loss", "contrast loss", "prift loss", "tokenclean loss", "base nll", "reference nll", "delta mean")


@pytest.fixture(scope="module")
def stores(material, tmp_path_factory):
    """The rows of three steps in float32: of the reference, of its base (the policy's start), and one constant."""
    folder = tmp_path_factory.mktemp("two_stores")
    for name, model in (("reference", material.reference), ("base", material.policy)):
        score(1, folder / name, *material.remit(row_seed=3, score_dtype="float32", reference_load=model))
    found = read_manifest(folder / "reference")
    create_manifest(folder / "constant", Manifest(found.identity, found.created_by))
    writer = StoreWriter(folder / "constant", {})
    for key, nll_S in rows_of(folder / "reference").items():
        writer.add(key, numpy.full_like(nll_S, 3.3))
    writer.close()
    return folder


def run_plan(material, plan, ranks=1, **overrides):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAN", plan)
        flags = material.flags(**{"objective": "contrast", "row_seed": 3, "lr": 0.3} | overrides)
        return pretrain(ranks, *flags, module="tests.planned_objectives")


@pytest.mark.slow
def test_two_stores_train_as_two_models_do_bit_for_bit(material, stores):
    """And any mixture: the reference online and its base stored."""
    online = {"reference_load": material.reference, "reference_base_load": material.policy}
    base, reference = {"score_store_base": stores / "base"}, {"score_store": stores / "reference"}
    expected = run_plan(material, "from stores", **online)
    stored = run_plan(material, "from stores", **base, **reference)
    mixed = run_plan(material, "from stores", **base, reference_load=material.reference)
    for name in FIGURES:
        assert stored.series(name) == mixed.series(name) == expected.series(name), name
    assert expected.output.count("loading the reference") == 2 and mixed.output.count("loading the reference") == 1
    assert "loading the reference" not in stored.output
    split = run_plan(material, "from stores", 2, **base, **reference, tensor_model_parallel_size=2)
    for name in FIGURES:
        assert split.series(name) == pytest.approx(expected.series(name), rel=2e-5, abs=5e-6), name


@pytest.mark.slow
def test_prift_with_a_constant_reference_is_ntp_bit_for_bit(material, stores):
    run = pretrain(1, *material.flags(objective="prift", row_seed=3, score_store=stores / "constant"))
    ntp = pretrain(1, *material.flags(row_seed=3))
    assert run.series("lm loss") == run.series("prift loss") == ntp.series("lm loss")
    assert run.series("grad-norm") == ntp.series("grad-norm")
    assert run.series("weight mean") == [1.0] * 3 and run.series("weight std") == [0.0] * 3


@pytest.mark.slow
def test_eslm_chooses_alike_on_a_pipeline_and_needs_no_reference(material):
    flags = {"objective": "eslm", "eslm_alpha": 0.4, "eslm_scope": "global-batch", "lr": 0.3}
    expected = pretrain(1, *material.flags(**flags))
    run = pretrain(2, *material.flags(**flags, pipeline_model_parallel_size=2))
    for name in ("lm loss", "eslm loss", "kept share"):
        assert run.series(name) == pytest.approx(expected.series(name), rel=2e-5), name
    assert "loading the reference" not in run.output and "reference share" not in run.scalars


def test_a_sample_brings_the_scores_of_both_stores(tmp_path):
    folders = [make_store(tmp_path / name) for name in ("reference", "base")]
    store_sample(folders[0], 3)
    inner = ScoredDataset(Samples(), ScoreStore(folders[0]), False, 0.0)

    def wrapped():
        return ScoredDataset(inner, ScoreStore(folders[1]), False, 0.0, "base_nll", "--score-store-base")

    with pytest.raises(UserError, match=rf"--score-store-base {folders[1]}: sample 3 of the run .* data flags$"):
        wrapped()[3]
    store_sample(folders[1], 3)
    found = wrapped()[3]
    for column in ("reference_nll", "base_nll"):
        numpy.testing.assert_array_equal(found[column], nll(3).astype(numpy.float16))
    assert wrapped().split == inner.split == "train"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"objective": "contrast"},
            "--objective contrast needs the NLLs of the reference's base: give --score-store-base",
        ),
        ({"objective": "tokenclean"}, "--objective tokenclean needs the NLLs of the reference's base"),
        (
            {"score_store_base": "b"},
            r"--score-store-base is for .* two references \(contrast, tokenclean\), .* is remit",
        ),
        (
            {"reference_base_load": "b", "objective": "prift"},
            "--reference-base-load is for objectives with two references",
        ),
        (
            {"objective": "contrast", "score_store": "s", "score_store_base": "s"},
            "--score-store-base and --score-store are both s: the reference would be compared with itself",
        ),
        ({"objective": "tokenclean", "score_store_base": "b", "score_wait": 600}, "--score-wait 600 is not below"),
        (
            {"objective": "rho1", "tokenclean_threshold": 0.5, "tokenclean_keep_ratio": 0.5},
            "--tokenclean-threshold 0.5 and --tokenclean-keep-ratio 0.5",
        ),
    ],
)
def test_flags_that_cannot_work_together(changes, named, material):
    with pytest.raises(UserError, match=named):
        check_arguments(parsed(material.remit(**changes)))


def test_a_model_that_is_its_own_base_is_refused(material):
    with pytest.raises(UserError, match="--reference-base-load and --reference-load are both"):
        check_arguments(parsed(material.remit(objective="contrast", reference_base_load=material.reference)))


def test_contrast_takes_the_flags_of_remit(material):
    check_arguments(parsed(material.remit(objective="contrast", score_store_base="b", remit_control="permute")))


def test_a_base_store_is_opened_only_by_runs_that_it_fits(material, tmp_path):
    def flags(**changes):
        return arguments(material, material.remit(objective="contrast", score_store_base=tmp_path / "b"), **changes)

    with pytest.raises(UserError, match=r"b/manifest.json: no such file, so this is no score store"):
        session.open_base_store(flags())
    made = arguments(material, material.remit(score_store=tmp_path / "b"), reference_load=material.policy)
    session.open_store(made, create=True)
    session.current_stores().clear()
    assert session.open_base_store(flags()).manifest.identity.dtype == "float16"
    # How a new store of the reference is to hold its NLLs says nothing about this one.
    session.open_base_store(flags(score_dtype="float32", reference_base_load=material.policy))
    for changes, named in (
        ({"reference_load": material.policy}, "--score-store-base .*b: its NLLs are those of the reference itself"),
        ({"reference_base_load": material.reference}, "--score-store-base .*b: written for another reference"),
        ({"remit_tokenizer_fingerprint": "0" * 64}, "--score-store-base .* another tokenizer"),
        ({"remit_vocab_size": 516}, "--score-store-base .* vocabulary"),
        ({"seq_length": 48}, "--score-store-base .* sequence length: found 24, expected 48"),
        ({"reset_attention_mask": True}, "--score-store-base .* --reset-attention-mask"),
    ):
        with pytest.raises(UserError, match=named):
            session.open_base_store(flags(**changes))
    session.current_stores().clear()
