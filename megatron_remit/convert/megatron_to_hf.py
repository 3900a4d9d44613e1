"""Export: a Megatron checkpoint, imported or trained, becomes a Hugging Face folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from megatron_remit.convert.families import family_fields, read_config
from megatron_remit.convert.hf_io import DEFAULT_SHARD_BYTES, check_shard_bytes, read_json, write_tensors
from megatron_remit.convert.hf_side_files import CONFIG, copy_side_files, side_files
from megatron_remit.convert.megatron_io import CheckpointReader
from megatron_remit.convert.output import check_output, converted_folder
from megatron_remit.convert.rules import Dims, Rule, in_layer_order
from megatron_remit.errors import UserError
from megatron_remit.model_arguments import MODEL_ARGUMENTS, has_effect
from megatron_remit.trust.digests import write_digests

# Arguments that are a list with an entry for each layer, or a number n: (the entry of most layers, of every n-th one).
_EVERY_NTH = {"no_rope_freq": (0, 1), "window_attn_skip_freq": (1, 0)}


def export_hf(
    megatron: Path,
    hf_template: Path,
    out: Path,
    iteration: int | None = None,
    overwrite: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    skip_digests: bool = False,
) -> None:
    """Write the checkpoint in folder ``megatron`` (its latest iteration if None) as the Hugging Face folder ``out``.

    Config, tokenizer and chat template come from ``hf_template``. Every tensor keeps its dtype and its bits; padded
    vocabulary rows are dropped and optimizer state is not read. The checkpoint's digests are checked unless
    ``skip_digests``, and the folder gets its own.

    Raises:
        UserError: the checkpoint is missing, damaged, could run code, or is of another model than the template; ``out``
            overlaps one of the two, or exists (unless ``overwrite``). No folder remains.
    """
    check_shard_bytes(shard_bytes)
    family, config = read_config(hf_template)
    files = side_files(hf_template)
    reader = CheckpointReader(megatron, iteration, skip_digests)
    check_output(out, overwrite, "export", {"--megatron": megatron, "--hf-template": hf_template})
    arguments = family.arguments(config)
    _check_same_model(reader, arguments, hf_template)
    _check_same_vocabulary(reader, config["vocab_size"], hf_template)
    rules = family.rules_for(config)
    dims = dict(family.dims(config))
    (dims["padded"], *_), dtype = reader.stored(rules[0].megatron)
    if dims["padded"] < dims["V"]:
        raise UserError(
            f"{reader.path}: {rules[0].megatron} has {dims['padded']} rows, fewer than vocab_size {dims['V']} of "
            f"{hf_template / 'config.json'}: train with a vocabulary of that size"
        )
    fields = family_fields(family, hf_template) | _dtype_fields(read_json(hf_template / CONFIG), dtype)
    with converted_folder(out, "export") as folder:
        write_tensors(folder, _hf_tensors(reader, rules, dims, arguments["num_layers"]), shard_bytes)
        write_digests(folder, sorted(folder.glob("*.safetensors")))
        copy_side_files(hf_template, files, folder, fields)


def _hf_tensors(
    reader: CheckpointReader, rules: tuple[Rule, ...], dims: Dims, layers: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Hugging Face names and tensors in layer order. One layer's (and expert's) entry of a Megatron tensor is
    read at a time."""
    for rule, layer in tqdm(in_layer_order(rules, layers), desc="splitting tensors", unit="tensor", disable=None):
        for expert in rule.expert_range(dims):
            stored = reader.read(rule.place(layer, expert, layers, dims), rule.megatron_shape(dims))
            for name, part in zip(rule.hf_names(layer, expert), rule.join.to_hf(stored, dims), strict=True):
                # A slice would keep the whole joined tensor in memory until its file is written.
                yield name, part.clone() if part.nbytes < stored.nbytes else part


def _check_same_model(reader: CheckpointReader, arguments: dict[str, Any], hf_template: Path) -> None:
    """Refuse a checkpoint whose run changed what defines the model beyond the shapes of its tensors.

    An argument that the family does not state is neutral in the template's model.
    """
    for row in MODEL_ARGUMENTS:
        if not row.export or not (row.name in arguments or has_effect(row, arguments)):
            continue
        expected = arguments.get(row.name, row.neutral)
        found = getattr(reader.arguments, row.name, expected)
        if row.name in _EVERY_NTH and isinstance(found, int):
            others, nth = _EVERY_NTH[row.name]
            found = [others if layer % found else nth for layer in range(1, arguments["num_layers"] + 1)]
        if found != expected:
            raise UserError(
                f"{reader.path}: trained with {row.name} = {found}, but {hf_template / 'config.json'} says "
                f"{expected}: pass the template of the model that was trained"
            )


def _check_same_vocabulary(reader: CheckpointReader, size: int, hf_template: Path) -> None:
    """Refuse a template with fewer tokens, which would lose rows, or with more, which would get rows that no run has
    trained. What other programs trained states no vocabulary."""
    found = getattr(reader.arguments, "remit_vocab_size", None)
    if found not in (None, size):
        raise UserError(
            f"{reader.path}: the model has {found} tokens, but {hf_template / 'config.json'} says vocab_size {size}: "
            "pass the template of the model that was trained"
        )


def _dtype_fields(config: dict[str, Any], dtype: torch.dtype) -> dict[str, str]:
    """The dtype of the stored weights, under each name that the template's config uses for it."""
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    return dict.fromkeys(names, str(dtype).removeprefix("torch."))
