"""Bad input ends before step 1 with an error that names the flag or file, what was found and what to do."""

import argparse
import shutil

import pytest
from megatron.training.arguments import add_megatron_arguments

from megatron_remit import cpu, patches
from megatron_remit.argument_checks import check_arguments
from megatron_remit.arguments import add_remit_arguments
from megatron_remit.data.checked import check_corpora
from megatron_remit.data.tokenizer import folder_fingerprint
from megatron_remit.errors import UserError
from megatron_remit.model_arguments import NEUTRAL
from megatron_remit.objectives.remit import check_end_of_document
from megatron_remit.reference.checkpoint import reference_arguments
from megatron_remit.trust.loading import check_loaded
from tests.conftest import VOCABULARY
from tests.ranks import pretrain

cpu.install()

patches.apply()

PACKED = {"dataloader_inter_document_masking": True}


def parsed(flags):
    """Arguments as the program has them after Megatron's validation, as far as the checks look at them."""
    parser = add_remit_arguments(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))
    args = parser.parse_args([str(flag) for flag in flags])
    args.rank, args.world_size, args.data_parallel_size = 0, 1, 1
    args.virtual_pipeline_model_parallel_size = None
    args.remit_vocab_size = VOCABULARY
    return args


@pytest.fixture
def remit(material):
    args = parsed(material.remit())
    args.remit_tokenizer_fingerprint = folder_fingerprint(material.policy / "hf")
    return args


def test_the_reference_of_the_fixtures_is_accepted(remit):
    check_arguments(remit)
    own = reference_arguments(remit)
    assert own.num_layers == 4 and own.layernorm_epsilon == 1e-5
    assert remit.num_layers is None, "the run's own arguments stay as they were"


def test_no_shape_of_the_policy_reaches_the_reference(remit):
    policy = object()
    # Each rank must hold the same token ids of both models.
    for name in NEUTRAL.keys() - {"remit_vocab_size", "padded_vocab_size"}:
        setattr(remit, name, policy)
    own = reference_arguments(remit)
    assert [name for name, value in vars(own).items() if value is policy] == []


def test_an_uneven_pipeline_of_the_policy_is_not_that_of_a_reference_with_other_layers(remit):
    remit.num_layers, remit.decoder_first_pipeline_num_layers, remit.pipeline_model_parallel_size = 5, 3, 2
    assert reference_arguments(remit).decoder_first_pipeline_num_layers is None
    remit.num_layers, remit.decoder_first_pipeline_num_layers = 4, 3
    assert reference_arguments(remit).decoder_first_pipeline_num_layers == 3


@pytest.mark.parametrize(
    ("layout", "found"),
    [
        ({"pipeline_model_parallel_size": 3}, "4 layers do not divide over 3 pipeline stages"),
        ({"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 3}, "of 3 model chunks each"),
        ({"tensor_model_parallel_size": 8}, "4 attention heads do not divide over --tensor-model-parallel-size 8"),
    ],
)
def test_a_reference_that_does_not_fit_the_layout(layout, found, remit, material):
    for name, value in layout.items():
        setattr(remit, name, value)
    with pytest.raises(UserError, match=f"--reference-load {material.reference}.*{found}"):
        reference_arguments(remit)


def test_remit_without_a_reference(material):
    args = parsed(material.flags(objective="remit"))
    with pytest.raises(UserError, match="--reference-load"):
        check_arguments(args)


@pytest.mark.parametrize("value", ["-0.1", "1.5", "much"])
def test_epsilon_outside_the_unit_interval(value, material, capsys):
    with pytest.raises(SystemExit):
        parsed([*material.remit(), f"--remit-epsilon={value}"])
    assert "--remit-epsilon" in capsys.readouterr().err


def test_epsilon_none_turns_clipping_off(material):
    assert parsed([*material.remit(), "--remit-epsilon", "none"]).remit_epsilon is None


@pytest.mark.parametrize("objective", ["rho1", "kd", "prift"])
def test_other_objectives_without_a_reference(objective, material):
    with pytest.raises(UserError, match=rf"--objective {objective} needs a reference: give --reference-load"):
        check_arguments(parsed(material.flags(objective=objective)))


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--objective", "rho2", "invalid choice: 'rho2'"),
        ("--rho1-keep-ratio", "0", "(0, 1]"),
        ("--rho1-keep-ratio", "1.2", "(0, 1]"),
        ("--rho1-keep-ratio", "most", "(0, 1]"),
        ("--rho1-scope", "batch", "invalid choice: 'batch'"),
        ("--eslm-alpha", "1", "[0, 1)"),
        ("--eslm-alpha", "-0.1", "[0, 1)"),
        ("--eslm-scope", "batch", "invalid choice: 'batch'"),
        ("--tokenclean-keep-ratio", "0", "(0, 1]"),
        ("--tokenclean-threshold", "nan", "is not a number of nats"),
        ("--tokenclean-threshold", "inf", "is not a number of nats"),
        ("--remit-control", "shuffle", "invalid choice: 'shuffle'"),
        ("--kd-alpha", "-0.1", "[0, 1]"),
        ("--kd-alpha", "nan", "[0, 1]"),
        ("--kd-temperature", "0", "above 0"),
        ("--kd-temperature", "inf", "above 0"),
        ("--kd-temperature", "hot", "above 0"),
    ],
)
def test_values_that_an_objective_cannot_take(flag, value, expected, material, capsys):
    with pytest.raises(SystemExit):
        parsed([*material.remit(), f"{flag}={value}"])
    error = capsys.readouterr().err
    assert flag in error and expected in error


def test_reference_micro_batch_that_does_not_divide_the_step(material):
    with pytest.raises(UserError, match=r"--reference-micro-batch-size 3 .* 8 sequences"):
        check_arguments(parsed(material.remit(reference_micro_batch_size=3)))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"cuda_graph_impl": "full_iteration"}, "--cuda-graph-impl full_iteration"),
        ({"cuda_graph_impl": "local"}, "--cuda-graph-impl local with --objective remit"),
        ({"objective": "rho1", "remit_control": "permute"}, "--remit-control permute .* the objective is rho1"),
        ({"objective": "eslm", "reference_load": None, "cuda_graph_impl": "local"}, "--cuda-graph-impl local .* eslm"),
        ({"objective": "kd", "fp16": True}, "--objective kd with --fp16: .* use --bf16"),
        ({"objective": "ntp"}, "--reference-load .*reference with --objective ntp, which reads no reference"),
        ({"skip_train": True}, "--skip-train with --objective remit"),
        ({"decrease_batch_size_if_needed": True}, "--decrease-batch-size-if-needed is not supported with"),
        ({"step_batch_size_schedule": "0:8 9:16"}, "--step-batch-size-schedule is not supported with"),
        ({"defer_embedding_wgrad_compute": True}, "--defer-embedding-wgrad-compute is not supported with"),
        ({"reset_attention_mask": True, "pipeline_model_parallel_size": 3}, "--reset-attention-mask"),
        ({"reset_attention_mask": True, "transformer_impl": "transformer_engine"}, "--transformer-impl local"),
        ({"cross_entropy_impl": "triton"}, "--cross-entropy-impl triton needs CUDA"),
        (PACKED | {"reset_position_ids": True}, "masking with --reset-position-ids"),
        (PACKED | {"context_parallel_size": 2}, "masking with --context-parallel-size 2"),
        (PACKED | {"pipeline_model_parallel_size": 2}, "masking with --micro-batch-size 2 and --pipeline"),
        (PACKED | {"objective": "kd", "micro_batch_size": 1, "reference_micro_batch_size": 2}, "size 2 and --obj.* kd"),
    ],
)
def test_flags_that_cannot_work_together(flags, named, material):
    with pytest.raises(UserError, match=named):
        check_arguments(parsed(material.remit(**flags)))


@pytest.mark.parametrize("objective", ["remit", "contrast"])
def test_the_control_belongs_to_remit_and_its_heir(objective, material):
    base = material.policy if objective == "contrast" else None
    check_arguments(parsed(material.remit(objective=objective, remit_control="permute", reference_base_load=base)))


@pytest.mark.parametrize(
    ("end", "pad", "found"),
    [
        (None, 1, "no end-of-document token"),
        (7, 7, "token 7 both ends a document and pads"),
    ],
)
def test_document_centering_without_a_mark_between_documents(end, pad, found):
    check_end_of_document(argparse.Namespace(eod=0, pad=1), "hf")
    with pytest.raises(UserError, match=f"--remit-centering document.* hf .*{found}"):
        check_end_of_document(argparse.Namespace(eod=end, pad=pad), "hf")


def test_document_masks_with_model_chunks_that_read_no_data(material):
    args = parsed(material.remit(reset_attention_mask=True, pipeline_model_parallel_size=2))
    check_arguments(args)
    args.virtual_pipeline_model_parallel_size = 2
    with pytest.raises(UserError, match=r"--reset-attention-mask .* 2 model chunks"):
        check_arguments(args)


def test_growing_batches(material):
    with pytest.raises(UserError, match="--rampup-batch-size"):
        check_arguments(parsed([*material.remit(), "--rampup-batch-size", "4", "4", "100"]))


def test_a_load_without_a_checkpoint(material, tmp_path):
    (tmp_path / "file").write_text("")

    def check(load, **flags):
        check_loaded(parsed(material.flags(**{"load": load, "finetune": None} | flags)))

    for load, found in (
        (tmp_path / "new", "no such folder; expected a Megatron checkpoint"),
        (tmp_path, "holds no checkpoint .latest_checkpointed_iteration.txt is not there.; expected"),
        (tmp_path / "file", "is a file; expected"),
        (
            material.policy / "hf",
            "is a Hugging Face model folder, .* make one with tools/import_hf.py --hf .* --out DIR",
        ),
    ):
        with pytest.raises(UserError, match=f"--load {load}: {found}"):
            check(load)
    # A new run whose shape is in its flags begins so, and one whose model is in --pretrained-checkpoint.
    check(tmp_path / "new", num_layers=2)
    check(tmp_path / "new", pretrained_checkpoint=material.policy)
    with pytest.raises(UserError, match="no such folder"):
        check(tmp_path / "new", num_layers=2, finetune=True)


def test_missing_reference_folder(remit, tmp_path):
    remit.reference_load = tmp_path / "nothing"
    with pytest.raises(UserError, match=r"nothing/latest_checkpointed_iteration\.txt: no such file"):
        reference_arguments(remit)


def test_folder_that_is_no_checkpoint(remit, tmp_path):
    remit.reference_load = tmp_path
    with pytest.raises(UserError, match=r"latest_checkpointed_iteration\.txt"):
        reference_arguments(remit)


@pytest.mark.parametrize("damage", ["half a shard", "no shard", "no index", "no arguments file"])
def test_half_written_checkpoint(damage, remit, material, tmp_path):
    folder = tmp_path / "reference"
    shutil.copytree(material.reference, folder)
    shard = next((folder / "release").glob("*.distcp"))
    if damage == "half a shard":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    elif damage == "no shard":
        shard.unlink()
    elif damage == "no index":
        (folder / "release" / ".metadata").unlink()
    else:
        (folder / "release" / "metadata.json").unlink()
    remit.reference_load = folder
    with pytest.raises(UserError, match=str(folder)):
        reference_arguments(remit)


def test_a_reference_with_fewer_rows_than_the_policy(remit):
    remit.remit_vocab_size, remit.remit_tokenizer_fingerprint, remit.tokenizer_type = 516, None, "NullTokenizer"
    reference_arguments(remit)
    assert remit.remit_common_vocab_size == VOCABULARY


def test_reference_of_another_tokenizer_of_the_same_size(remit):
    remit.remit_tokenizer_fingerprint = "0" * 64
    with pytest.raises(UserError, match="tokenizer"):
        reference_arguments(remit)


def test_reference_with_a_shorter_context(remit):
    remit.seq_length = 65
    with pytest.raises(UserError, match=r"at most 64 tokens, --seq-length is 65"):
        reference_arguments(remit)


def test_no_corpus_at_all(material):
    with pytest.raises(UserError, match="--data-path"):
        check_corpora(parsed(material.flags(data_path=None)), VOCABULARY)


@pytest.mark.slow
def test_the_program_ends_with_the_message_and_no_step(material, tmp_path):
    flags = material.remit()
    flags[flags.index("--reference-load") + 1] = str(tmp_path)
    run = pretrain(1, *flags, check=False)
    assert run.returncode != 0
    assert f"error: --reference-load {tmp_path}: {tmp_path}/latest_checkpointed_iteration.txt: no such" in run.output
    assert not run.scalars.get("lm loss")
