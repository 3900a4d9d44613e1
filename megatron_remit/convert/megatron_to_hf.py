"""Export: a Megatron checkpoint, imported or trained, becomes a Hugging Face folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from megatron_remit.convert.families import family_of
from megatron_remit.convert.folders import check_output, whole_folder
from megatron_remit.convert.hf_io import DEFAULT_SHARD_BYTES, copy_side_files, read_json, write_json, write_tensors
from megatron_remit.convert.megatron_io import CheckpointReader
from megatron_remit.convert.rules import Dims, Rule
from megatron_remit.errors import UserError

# What defines the model, beside its tensor shapes; a run that changed one of these trained another model.
_SAME_ARGUMENTS = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "rotary_base",
    "rotary_percent",
    "norm_epsilon",
    "untie_embeddings_and_output_weights",
)


def export_hf(
    megatron: Path,
    hf_template: Path,
    out: Path,
    iteration: int | None = None,
    overwrite: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write the checkpoint in folder ``megatron`` (its latest iteration if None) as the Hugging Face folder ``out``.

    Config, tokenizer and chat template come from ``hf_template``. Every tensor keeps its dtype and its bits; padded
    vocabulary rows are dropped and optimizer state is not read. Raises :class:`UserError`, leaving no folder behind,
    for a checkpoint that is missing, truncated, or of another shape than the template.
    """
    config = read_json(hf_template / "config.json")
    family = family_of(config, str(hf_template / "config.json"))
    check_output(out, overwrite)
    reader = CheckpointReader(megatron, iteration)
    arguments = family.arguments(config)
    _check_same_model(reader, arguments, hf_template)
    rules = family.rules_for(config)
    dims = dict(family.dims(config))
    (dims["padded"], *_), dtype = reader.stored(rules[0].megatron)
    if dims["padded"] < dims["V"]:
        raise UserError(
            f"{reader.path}: {rules[0].megatron} has {dims['padded']} rows, fewer than vocab_size {dims['V']} of "
            f"{hf_template / 'config.json'}: train with a vocabulary of that size"
        )
    with whole_folder(out, overwrite) as folder:
        write_tensors(folder, _hf_tensors(reader, rules, dims, arguments["num_layers"]), shard_bytes)
        copy_side_files(hf_template, folder)
        write_json(folder / "config.json", _with_dtype(config, dtype))


def _hf_tensors(
    reader: CheckpointReader, rules: tuple[Rule, ...], dims: Dims, layers: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Hugging Face names and tensors; one of Megatron's tensors (all layers of it) is in memory at a time."""
    for rule in tqdm(rules, desc="splitting tensors", unit="tensor", disable=None):
        shape = rule.megatron_shape(dims)
        stored = reader.read(rule.megatron, (layers, *shape) if rule.layered else shape)
        for layer, tensor in enumerate(stored) if rule.layered else [(0, stored)]:
            for name, part in zip(rule.hf, rule.join.to_hf(tensor, dims), strict=True):
                # A slice would keep the whole stacked tensor in memory until its file is written.
                yield name.format(i=layer), part.clone()


def _check_same_model(reader: CheckpointReader, arguments: dict[str, Any], hf_template: Path) -> None:
    for name in _SAME_ARGUMENTS:
        found = getattr(reader.arguments, name, arguments[name])
        if found != arguments[name]:
            raise UserError(
                f"{reader.path}: trained with {name} = {found}, but {hf_template / 'config.json'} says "
                f"{arguments[name]}: pass the template of the model that was trained"
            )


def _with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The template's config with the dtype of the stored weights, under the name that it used."""
    field = "torch_dtype" if "torch_dtype" in config else "dtype"
    return config | {field: str(dtype).removeprefix("torch.")}
