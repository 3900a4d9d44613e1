"""Import: a Hugging Face folder becomes a Megatron checkpoint.

OUT/latest_checkpointed_iteration.txt   "release": weights without optimizer state
OUT/release/                            torch_dist shards, with the model's shape as Megatron arguments
OUT/hf/                                 config, tokenizer and chat template, for --tokenizer-model and for the export
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_remit.artifacts import check_output, whole_folder
from megatron_remit.convert.families import read_config
from megatron_remit.convert.hf_io import HfTensors, copy_side_files
from megatron_remit.convert.release_writer import ReleaseWriter
from megatron_remit.convert.rules import Config, Dims, Family, Rule, in_layer_order
from megatron_remit.model_arguments import neutral

# Megatron's default. A run at a larger TP pads to a multiple of TP x this, and its loader fills the rest with zeros.
VOCABULARY_MULTIPLE = 128
HF_FOLDER = "hf"


def import_hf(hf: Path, out: Path, overwrite: bool = False) -> None:
    """Convert the model in folder ``hf`` and write it to the new folder ``out``.

    Every tensor keeps its dtype and its bits; rows that pad the vocabulary are zero. One tensor at a time is in memory.

    Raises:
        UserError: before anything is written, for an unknown architecture, an unsupported config field, a missing,
            unexpected or wrongly shaped tensor, a damaged file, or an ``out`` that exists (unless ``overwrite``).
    """
    family, config = read_config(hf)
    check_output(out, overwrite)
    arguments = family.arguments(config)
    dims = padded_dims(family, config)
    layers = arguments["num_layers"]
    tensors = HfTensors(hf)
    rules = in_layer_order(family.rules_for(config), layers)
    expected: dict[str, tuple[int, ...]] = {}
    for rule, layer in rules:
        expected |= rule.hf_shapes(dims, layer or 0)
    dtype = tensors.check(expected)

    writer = ReleaseWriter(layers, dtype)
    for rule, layer in rules:
        writer.add(rule.megatron, rule.megatron_shape(dims), layer, partial(_joined, tensors, rule, dims, layer))
    for module, layered in family.extra_state.items():
        writer.add_empty_extra_state(module, layered)
    with whole_folder(out, overwrite) as folder:
        writer.write(folder, arguments | _bookkeeping(family, config, dtype))
        copy_side_files(hf, folder / HF_FOLDER)


def _joined(tensors: HfTensors, rule: Rule, dims: Dims, layer: int | None) -> torch.Tensor:
    return rule.join.to_megatron([tensors.get(name.format(i=layer)) for name in rule.hf], dims)


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
