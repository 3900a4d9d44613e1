"""Import: a Hugging Face folder becomes a Megatron checkpoint.

OUT/latest_checkpointed_iteration.txt   "release": weights without optimizer state
OUT/release/                            torch_dist shards, with the model's shape as Megatron arguments
OUT/remit_conversion.json               the files of the import, for --overwrite
OUT/hf/                                 config, tokenizer and chat template, for --tokenizer-model and for the export
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_remit.convert.families import family_fields, read_config
from megatron_remit.convert.fused_experts import ExpertTensors
from megatron_remit.convert.hf_io import read_json
from megatron_remit.convert.hf_side_files import copy_side_files, has_tokenizer, side_files
from megatron_remit.convert.hf_tensors import HfTensors
from megatron_remit.convert.output import check_output, converted_folder
from megatron_remit.convert.release_writer import ReleaseWriter
from megatron_remit.convert.rules import Config, Dims, Family, Rule, in_layer_order
from megatron_remit.errors import note
from megatron_remit.model_arguments import neutral
from megatron_remit.trust.digests import LISTS, check_digests, check_downloaded, listed, write_digests
from megatron_remit.trust.loading import RELEASE, checkpoint_files

# Megatron's default. A run at a larger TP pads to a multiple of TP x this, and its loader fills the rest with zeros.
VOCABULARY_MULTIPLE = 128
HF_FOLDER = "hf"


def import_hf(
    hf: Path, out: Path, overwrite: bool = False, dtype: str | None = None, skip_digests: bool = False
) -> None:
    """Convert the model in folder ``hf`` and write it to the new folder ``out``.

    Every tensor keeps its dtype and its bits, unless ``dtype`` ("bf16", "fp16", "fp32") converts them; rows that pad
    the vocabulary are zero. One tensor at a time is in memory. What is read otherwise than it is named is noted on
    stderr.

    Raises:
        UserError: before anything is written, for an unknown architecture, an unsupported config field, a missing,
            unexpected or wrongly shaped tensor, several dtypes, a damaged file, weights that are not what their digests
            or their names in the Hugging Face cache say (unless ``skip_digests``), a side file that is a link out of
            the folder, or an ``out`` that overlaps ``hf`` or exists (unless ``overwrite``). While it writes, for a
            tensor with NaN or infinity; no folder remains.
    """
    family, config = read_config(hf)
    check_output(out, overwrite, "import", {"--hf": hf})
    files = side_files(hf)
    if (hf / "tokenizer.json").is_file():
        read_json(hf / "tokenizer.json")  # a run that reads it would be too late to hear of damage
    if not skip_digests and any(hf.glob(LISTS)):
        check_digests(hf, sorted(hf.glob("*.safetensors")))
    arguments = family.arguments(config)
    dims = padded_dims(family, config)
    layers = arguments["num_layers"]
    tensors = HfTensors(hf, dtype) if family.mixture is None else ExpertTensors(hf, dtype)
    if not skip_digests:
        in_lists = {hf / name for name in listed(hf)}
        check_downloaded(path for path in tensors.files if path not in in_lists)
    rules = in_layer_order(family.rules_for(config), layers)
    expected: dict[str, tuple[int, ...]] = {}
    for rule, layer in rules:
        expected |= rule.hf_shapes(dims, layer or 0)
    stored = tensors.check(expected, tied=config["tie_word_embeddings"])
    _note_what_differs(hf, config, stored, dtype)

    writer = ReleaseWriter(stored)
    for rule, layer in rules:
        for expert in rule.expert_range(dims):
            make = partial(_joined, tensors, rule, dims, rule.hf_names(layer, expert))
            writer.add(rule.place(layer, expert, layers, dims), rule.megatron_shape(dims), make)
    for place in family.extra_states(config, layers, dims):
        writer.add_empty_extra_state(place)
    with converted_folder(out, "import") as folder:
        writer.write(folder, arguments | _bookkeeping(family, config, stored))
        write_digests(folder / RELEASE, checkpoint_files(folder / RELEASE))
        copy_side_files(hf, files, folder / HF_FOLDER, family_fields(family, hf))


def _note_what_differs(hf: Path, config: Config, stored: torch.dtype, asked: str | None) -> None:
    """Say where the import is not what transformers' defaults would read, or what a run will ask for."""
    named = getattr(torch, str(config.get("dtype")).removeprefix("torch."), None)
    if asked is None and isinstance(named, torch.dtype) and torch.promote_types(named, stored) != named:
        note(
            f"{hf}: the weights are {stored} and stay so, though config.json says {named}, to which transformers "
            "rounds them; --dtype rounds them here"
        )
    if not has_tokenizer(hf):
        note(
            f"{hf} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json): a run needs one from elsewhere, "
            "and cannot compare it with the other model's; copy the files of the model's tokenizer into the folder"
        )


def _joined(tensors: HfTensors, rule: Rule, dims: Dims, names: list[str]) -> torch.Tensor:
    return rule.join.to_megatron([tensors.get(name) for name in names], dims)


def padded_dims(family: Family, config: Config) -> Dims:
    """The family's sizes, with the vocabulary padded as Megatron pads it at TP 1."""
    dims = family.dims(config)
    return dims | {"padded": -(-dims["V"] // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE}


def _bookkeeping(family: Family, config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments that say how the checkpoint was made, in addition to those that say what the model is.

    padded_vocab_size is left out on purpose: each run computes it from its tokenizer and its own TP size. seq_length is
    left out because it belongs to the run.
    """
    return {
        "remit_architecture": family.architecture,
        "remit_vocab_size": config["vocab_size"],
        "params_dtype": dtype,
        "make_vocab_size_divisible_by": VOCABULARY_MULTIPLE,
        "add_position_embedding": True,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "ckpt_format": "torch_dist",
        "iteration": 0,
        "consumed_train_samples": 0,
        "skipped_train_samples": 0,
        "consumed_valid_samples": 0,
        **neutral("squared_relu", "apply_query_key_layer_scaling"),
    }
