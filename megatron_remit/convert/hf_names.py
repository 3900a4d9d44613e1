"""Stored tensor names, as wrappers of training tools leave them, become the names of the plain model.

A wrapper's part of a name says nothing about the model: torch.compile puts `_orig_mod` in front, peft
`base_model.model`, DistributedDataParallel `module`. It is taken off where the same holds for every tensor; what
changes the model itself (adapters, value heads, quantized weights) is refused with the command that gives a plain one.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from megatron_remit.convert.hf_folder import merge, resave
from megatron_remit.errors import UserError

LM_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# Parts that wrappers put anywhere into a name, and those that they put in front of all names.
_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_FRONTS = ("base_model.model.", "module.", "pretrained_model.")
_BASE = "model."

# Buffers of older files: RoPE's frequencies, which Megatron computes from the config, and causal masks.
_BUFFERS = (
    "rotary_emb.inv_freq",
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".masked_bias",
)

_LORA = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "base_layer")
_PEFT = (*_LORA, "modules_to_save", "original_module")
_VALUE_HEADS = ("v_head", "value_head", "critic_head")
_SCORES = frozenset({"score", "classifier", "reward_head"})
_QUANTIZED = ("qweight", "qzeros", "g_idx", "weight_packed", "weight_scale", "weight_scale_inv", "absmax", "SCB")


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is a constant that the model computes itself."""
    return name.endswith(_BUFFERS)


def plain_names(folder: Path, stored: Iterable[str], expected: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """For each plain name the ``stored`` one, and what was taken off or put in front, in words.

    ``expected`` holds the plain names of the model. As transformers does, a name with one `model.` too many or too few
    is read as the expected one.

    Raises:
        UserError: the tensors belong to something else than a plain model, or two stored names mean the same tensor.
    """
    found = {name: _without_parts(name) for name in stored}
    _check_kind(folder, found)
    removed = [f"{part}." for part in _PARTS if any(part in name.split(".") for name in found)]
    while front := next((front for front in _FRONTS if all(name.startswith(front) for name in found.values())), None):
        found = {name: plain.removeprefix(front) for name, plain in found.items()}
        removed.append(front)
    changes = [f"without {front}" for front in removed]
    stored_by_plain: dict[str, str] = {}
    for name, unbased in found.items():
        plain = _with_base(unbased, expected)
        if plain != unbased:
            change = f"with {_BASE} in front" if len(plain) > len(unbased) else f"without {_BASE}"
            changes += [change] * (change not in changes)
        if plain in stored_by_plain:
            raise UserError(f"{folder}: {stored_by_plain[plain]} and {name} are both there for the tensor {plain}")
        stored_by_plain[plain] = name
    return stored_by_plain, changes


def _without_parts(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _PARTS)


def _with_base(name: str, expected: Collection[str]) -> str:
    """transformers' rule (core_model_loading.rename_source_key): a base model's names lack the attribute `model.`"""
    if name.startswith(_BASE) and name.removeprefix(_BASE) in expected:
        return name.removeprefix(_BASE)
    return f"{_BASE}{name}" if f"{_BASE}{name}" in expected else name


def _check_kind(folder: Path, found: dict[str, str]) -> None:
    """Refuse what is no plain model, by its first such tensor."""
    for name, plain in found.items():
        parts = plain.split(".")
        if any(part in _PEFT for part in parts):
            raise UserError(
                f"{folder}: tensor {name} belongs to a LoRA model that is not merged; merge it in the training program "
                f"(model.merge_and_unload().save_pretrained(...)), or from its adapter folder: {merge(folder)}"
            )
        if any(part in _VALUE_HEADS for part in parts):
            raise UserError(
                f"{folder}: tensor {name} is a value head, as TRL's PPO saves it with its policy; to keep the policy "
                f"alone, {resave(folder)}"
            )
        if not _SCORES.isdisjoint(parts[-2:-1]):
            raise UserError(
                f"{folder}: tensor {name} is the head of a reward model or classifier, which predicts no tokens; give "
                "the RL-tuned language model"
            )
        if parts[-1] in _QUANTIZED:
            raise UserError(
                f"{folder}: tensor {name} belongs to quantized weights; give the model before it was quantized"
            )
        if parts[-1] in ("_flat_param", "flat_param"):
            raise UserError(
                f"{folder}: tensor {name} is a flat parameter of FSDP; save the model with FSDP's full state dict, or "
                "merge its shards with accelerate merge-weights"
            )
