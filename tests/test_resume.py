"""A resumed run is the run that it goes on from, or says what has changed, by name, before its first step."""

import json
import re
import shutil

import numpy
import pytest
import torch

from megatron_remit.data.corpus_files import corpus_digest
from megatron_remit.programs.resume import earlier_run
from megatron_remit.reference.checkpoint import saved_arguments
from megatron_remit.reference.fingerprint import reference_fingerprint
from tests.checkpoints import load_tensors
from tests.conftest import VOCABULARY, write_corpus, write_documents
from tests.ranks import pretrain
from tests.test_bad_input import parsed

SAVED = 2


FIGURES = ("remit loss", "grad-norm")


@pytest.fixture(scope="module")
def started(material, tmp_path_factory):
    """The flags of a run of 4 steps that has saved its second, in a folder of its own."""
    folder = tmp_path_factory.mktemp("started") / "run"
    pretrain(1, *material.remit(**run_flags(folder), exit_interval=SAVED))
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == str(SAVED)
    return folder


def run_flags(folder, **overrides):
    return {"train_iters": 4, "save": folder, "save_interval": SAVED, "lr": 1e-2, "optimizer": "adam"} | overrides


def resume(material, started, tmp_path, *flags, ranks=1, **overrides):
    """Goes on from a copy of ``started``."""
    folder = tmp_path / "run"
    shutil.copytree(started, folder)
    goes_on = run_flags(folder, load=folder, finetune=None) | overrides
    return pretrain(ranks, *material.remit(**goes_on), *flags, check=False)


@pytest.fixture(scope="module")
def resumed(material, started, tmp_path_factory):
    """The run that goes on from ``started`` with the same flags, and its folder."""
    folder = tmp_path_factory.mktemp("resumed")
    return resume(material, started, folder), folder / "run"


def test_the_same_flags_go_on(material, resumed):
    run, folder = resumed
    assert run.returncode == 0, run.failure()
    assert len(run.series("remit loss")) == 4 - SAVED
    content = json.loads((folder / "run.json").read_text())
    assert [start["step"] for start in content["starts"]] == [0, SAVED]
    assert content["identity"]["remit_epsilon"] == 0.2 and len(content["identity"]["reference"]) == 64
    assert {"torch", "megatron-core", "git commit"} <= content["starts"][0]["versions"].keys()


def test_the_model_that_the_run_started_from_stays_in_its_identity(material, resumed):
    """The second start has no --finetune, and reads its own checkpoint."""
    folder = resumed[1]
    identity = json.loads((folder / "run.json").read_text())["identity"]
    import_folder = material.policy / "release"
    assert identity["base"] == reference_fingerprint(import_folder, saved_arguments(import_folder))
    assert saved_arguments(folder / "iter_0000004").remit_run == identity


def test_step_0_is_the_latest_checkpoint(started):
    args = parsed(["--load", started, "--ckpt-step", 0])
    assert earlier_run(args)[1] == SAVED


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("seed", {"seed": 8}, "--seed 8, but the run in .* was trained with 7: from here on it would read other rows"),
        ("split", {"split": "90,10,0", "eval_iters": 0}, "--split 90,10,0, but .* 100,0,0"),
        ("dataloader_type", {"dataloader_type": "cyclic"}, "--dataloader-type cyclic, but .* single: .* other rows"),
        ("row_seed", {"row_seed": 1}, "--row-seed 1, but .* was trained with null"),
        ("eod_mask_loss", {"eod_mask_loss": None}, "--eod-mask-loss false, but .* true"),
        ("remit_epsilon", {"remit_epsilon": 0.3}, "--remit-epsilon 0.3, but .* 0.2: .* another loss"),
        ("remit_control", {"remit_control": "permute"}, "--remit-control permute, but .* none: "),
        ("objective", {"objective": "rho1"}, "--objective rho1, but .* remit"),
    ],
)
def test_a_changed_flag_is_refused_by_name_and_allowed_on_request(
    material, started, tmp_path, name, overrides, message
):
    run = resume(material, started, tmp_path, **overrides)
    assert run.returncode == 2, run.output
    (error,) = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert re.search(message, error) and f"--allow-changed {name}" in error
    shutil.rmtree(tmp_path / "run")
    allowed = resume(material, started, tmp_path, "--allow-changed", name, **overrides)
    assert allowed.returncode == 0, allowed.failure()
    assert f"note: {name} was " in allowed.output


def test_another_reference_is_refused(material, started, tmp_path):
    run = resume(material, started, tmp_path, reference_load=material.policy)
    assert run.returncode == 2 and "error: the reference is " in run.output
    assert "--allow-changed reference" in run.output


@pytest.mark.parametrize("change", ["reordered", "smaller", "one token"])
def test_a_corpus_replaced_at_its_path_is_refused(material, tmp_path, change):
    draw = numpy.random.default_rng(3)
    documents = [torch.from_numpy(numpy.append(draw.integers(1, VOCABULARY, 30), 0)) for _ in range(100)]
    corpus, folder = tmp_path / "corpus", tmp_path / "run"
    write_documents(corpus, documents)
    flags = run_flags(folder, data_path=corpus)
    pretrain(1, *material.remit(**flags, exit_interval=SAVED))
    if change == "reordered":
        documents.reverse()
    elif change == "smaller":
        documents = documents[:60]
    else:
        documents[50][3] = (documents[50][3] + 1) % VOCABULARY
    for suffix in (".bin", ".idx"):
        corpus.with_name(f"corpus{suffix}").unlink()
    write_documents(corpus, documents)
    run = pretrain(1, *material.remit(**flags | {"load": folder, "finetune": None}), check=False)
    assert run.returncode == 2 and "error: the content of the corpora is" in run.output, run.output
    assert "--allow-changed corpora" in run.output


def test_the_digest_of_a_large_corpus_sees_order_and_length_but_reads_little(tmp_path):
    tokens = numpy.random.default_rng(0).integers(0, 256, 4 << 20, dtype=numpy.uint8).tobytes()
    half = len(tokens) // 2
    digests = []
    for number, content in enumerate((tokens, tokens, tokens[half:] + tokens[:half], tokens[:-1], tokens + b"0")):
        prefix = tmp_path / f"corpus{number}"
        prefix.with_suffix(".bin").write_bytes(content)
        prefix.with_suffix(".idx").write_bytes(b"index")
        digests.append(corpus_digest(str(prefix)))
    assert digests[0] == digests[1] and len(set(digests)) == 4


def test_a_replaced_corpus_gets_an_order_of_its_own(material, tmp_path):
    """Megatron's cached order of the earlier one, of the same size at the same path, is not used."""
    for seed in (1, 2):
        write_corpus(tmp_path / "corpus", VOCABULARY, documents=200, seed=seed)
        found = pretrain(1, *material.flags(data_path=tmp_path / "corpus"))
        shutil.copytree(tmp_path, tmp_path.with_name(f"alone{seed}"), ignore=shutil.ignore_patterns("cache"))
        alone = pretrain(1, *material.flags(data_path=tmp_path.with_name(f"alone{seed}") / "corpus"))
        assert found.series("lm loss") == alone.series("lm loss")


def test_a_corpus_may_be_moved(material, started, tmp_path):
    for suffix in (".bin", ".idx"):
        shutil.copy(f"{material.corpus}{suffix}", tmp_path / f"moved{suffix}")
    run = resume(material, started, tmp_path, data_path=tmp_path / "moved")
    assert run.returncode == 0, run.failure()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"train_iters": 6}, "--train-iters 6, but the run in .* was started with 4"),
        ({"lr": 2e-2}, "--lr 0.02, but the run in .* was started with 0.01"),
        ({"lr_decay_style": "cosine"}, "--lr-decay-style cosine, but .* constant"),
    ],
)
def test_a_longer_run_or_another_learning_rate_says_how(material, started, tmp_path, overrides, named):
    run = resume(material, started, tmp_path, **overrides)
    assert run.returncode == 2
    assert re.search(f"error: {named}.*--override-opt_param-scheduler", run.output), run.output
    shutil.rmtree(tmp_path / "run")
    extended = resume(material, started, tmp_path, "--override-opt_param-scheduler", **overrides)
    assert extended.returncode == 0, extended.failure()
    assert len(extended.series("lm loss")) == overrides.get("train_iters", 4) - SAVED
    if "lr" in overrides:
        assert extended.series("learning-rate") == pytest.approx([2e-2] * 2)


def test_a_new_run_from_a_checkpoint_is_no_resumed_one(material, started, tmp_path):
    run = resume(material, started, tmp_path, finetune=True, seed=9, objective="rho1", save=tmp_path / "new")
    assert run.returncode == 0, run.failure()
    assert json.loads((tmp_path / "new/run.json").read_text())["identity"]["objective"] == "rho1"


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        ({"finetune": True}, "--finetune starts anew"),
        ({"load": "policy", "finetune": True}, "--finetune starts anew"),
        ({"load": "other"}, "--load {load}"),
    ],
)
def test_a_new_run_does_not_write_over_the_checkpoints_of_another(material, started, tmp_path, overrides, start):
    known = {"policy": material.policy, "other": started}
    overrides = overrides | {"load": known[overrides["load"]]} if "load" in overrides else overrides
    run = resume(material, started, tmp_path, **overrides)
    found = start.format(**overrides)
    assert run.returncode == 2, run.output
    assert f"error: --save {tmp_path}/run: holds a run's checkpoints, the last of them iter_0000002" in run.output
    assert f"which this start ({found}) would write over" in run.output
    assert (tmp_path / "run/run.json").read_bytes() == (started / "run.json").read_bytes()


def test_a_damaged_record_is_named(material, started, tmp_path):
    shutil.copytree(started, tmp_path / "run")
    (tmp_path / "run/run.json").write_text("{")
    run = pretrain(1, *material.remit(**run_flags(tmp_path / "run", load=tmp_path / "run", finetune=None)), check=False)
    assert run.returncode == 2 and f"error: {tmp_path}/run/run.json is damaged" in run.output


def test_the_distributed_optimizer_names_another_model_layout(material, tmp_path):
    stages = {"pipeline_model_parallel_size": 2}
    flags = run_flags(tmp_path / "run", use_distributed_optimizer=True, bf16=True)
    pretrain(2, *material.remit(**flags | stages, exit_interval=SAVED))
    for layout, message in (
        ({"tensor_model_parallel_size": 2}, "--tensor-model-parallel-size 2, but the run in"),
        # Megatron derives the number of chunks from this one.
        (stages | {"num_layers_per_virtual_pipeline_stage": 1}, "2 model chunks on each pipeline stage"),
    ):
        run = pretrain(2, *material.remit(**flags | layout | {"load": tmp_path / "run", "finetune": None}), check=False)
        errors = [line for line in run.output.splitlines() if line.startswith("error: ")]
        assert run.returncode != 0 and len(errors) == 1 and message in errors[0], run.output


def test_more_ranks_go_on_with_the_distributed_optimizer(material, tmp_path):
    """A fresh optimizer's second step would be off by 0.5 % in the loss and by 20 % in the gradient."""
    flags = run_flags(tmp_path / "run", use_distributed_optimizer=True, bf16=True)
    pretrain(1, *material.remit(**flags, exit_interval=SAVED))
    shutil.copytree(tmp_path / "run", tmp_path / "one")
    one, more = (
        pretrain(
            ranks,
            *material.remit(**flags | {"load": folder, "save": folder, "finetune": None, "lr": 3e-2}),
            "--override-opt_param-scheduler",
        )
        for ranks, folder in ((1, tmp_path / "one"), (2, tmp_path / "run"))
    )
    assert more.series("learning-rate") == pytest.approx([3e-2] * 2)
    assert_same_figures(more, one)
    assert load_tensors(tmp_path / "run/iter_0000004")


@pytest.mark.parametrize("layout", [{"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}])
def test_another_model_layout_goes_on_without_the_distributed_optimizer(material, started, resumed, tmp_path, layout):
    assert_same_figures(resume(material, started, tmp_path, ranks=2, **layout), resumed[0])


def assert_same_figures(found, expected):
    """Of each step after the resume."""
    for name in FIGURES:
        assert len(found.series(name)) == 4 - SAVED
        assert found.series(name) == pytest.approx(expected.series(name), rel=1e-5), name


def test_the_distributed_optimizer_resumes_in_fp32_bit_for_bit(material, tmp_path):
    flags = run_flags(tmp_path / "run", use_distributed_optimizer=True)
    whole = pretrain(1, *material.remit(**flags | {"save": tmp_path / "whole"}))
    pretrain(1, *material.remit(**flags, exit_interval=SAVED))
    rest = pretrain(1, *material.remit(**flags | {"load": tmp_path / "run", "finetune": None}))
    assert rest.series("remit loss") == whole.series("remit loss")[SAVED:]
    assert rest.series("grad-norm") == whole.series("grad-norm")[SAVED:]


def test_the_fully_reshardable_format_is_refused(material):
    run = pretrain(
        1, *material.remit(use_distributed_optimizer=True), "--dist-ckpt-optim-fully-reshardable", check=False
    )
    assert run.returncode == 2 and "error: --dist-ckpt-optim-fully-reshardable: Megatron" in run.output


def test_the_state_of_sgd_which_megatron_cannot_load_is_refused_in_words(material, tmp_path):
    flags = run_flags(tmp_path / "run", optimizer="sgd", sgd_momentum=0.9)
    pretrain(1, *material.flags(**flags), "--exit-interval", SAVED)
    goes_on = material.flags(**flags | {"load": tmp_path / "run", "finetune": None})
    refused = pretrain(1, *goes_on, check=False)
    assert refused.returncode == 2 and "--optimizer sgd, whose state Megatron" in refused.output, refused.output
    assert "Traceback" not in refused.output
    run = pretrain(1, *goes_on, "--no-load-optim", "--no-load-rng")
    assert len(run.series("lm loss")) == 4 - SAVED
