"""What lies in a folder that is no model folder with safetensors, in words, and the command that makes one of it.

Training tools leave adapters, shards of their own kind and pickles. None of them is read here: each has a tool that
merges it, and that tool knows its version of the format.
"""

import json
import os
import re
import shlex
from pathlib import Path

from megatron_remit.errors import DOWNLOAD, UserError, note

ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# transformers 5.23 reads files of this name in place of model.safetensors (distributed/checkpoint.py).
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_COMPLETE = "then copy config.json and the tokenizer's files of the model that was trained next to it"


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that cannot be read as transformers reads it.

    Raises:
        UserError: no config.json, an adapter that is not merged, or weights in transformers' distributed format.
    """
    adapters = [name for name in _ADAPTER_WEIGHTS if (folder / name).is_file()]
    if (folder / ADAPTER).is_file() and adapters:
        merged = "; if the weights next to it hold it already, remove it" if (folder / "config.json").is_file() else ""
        raise UserError(f"{folder / ADAPTER}: {_adapter(folder)}{merged}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'}: no such file; {what_is_there(folder)}")
    if (folder / ADAPTER).is_file():
        note(
            f"{folder / ADAPTER} has no adapter weights next to it and is left out; the weights of {folder} are taken "
            "as merged"
        )
    parts = sorted(file.name for file in folder.iterdir() if _DISTRIBUTED.fullmatch(file.name))
    if parts:
        raise UserError(
            f"{folder / parts[0]}: transformers reads these distributed weights in place of model.safetensors; "
            f"{resave(folder)}"
        )


def what_is_there(folder: Path) -> str:
    """What the folder holds in place of a model of safetensors, and what to do, as the end of a sentence."""
    if not folder.is_dir():
        if folder.suffix == ".gguf":
            return _gguf(folder)
        found = "is a file" if folder.exists() else "does not exist"
        return f"{folder} {found}; expected a Hugging Face model folder ({DOWNLOAD})"
    for patterns, explain in _KINDS:
        found_here = sorted(path for pattern in patterns for path in folder.glob(pattern))
        if found_here:
            return explain(found_here[0])
    models = sorted({path.parent.name for name in ("config.json", ADAPTER) for path in folder.glob(f"*/{name}")})
    if models:
        return f"there are model folders in it: {', '.join(models)}; give one of them"
    return "expected a Hugging Face model folder with config.json and model.safetensors"


def resaved(path: Path, ending: str = "safetensors") -> Path:
    """Where the suggested commands put the model that is made from ``path``."""
    whole = Path(os.path.abspath(path))
    return whole.parent / f"{whole.name}-{ending}"


def _python(*statements: str) -> str:
    return f"python -c {shlex.quote('; '.join(statements))}"


def _text(value: Path | str) -> str:
    """A Python string in double quotes, so that the shell's single quotes can go around the program."""
    return json.dumps(str(value))


def resave(folder: Path) -> str:
    """The advice to let transformers read the folder and write a plain one, with the command."""
    source, target = _text(folder), _text(resaved(folder))
    return "let transformers write it anew: " + _python(
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T",
        f'M.from_pretrained({source}, dtype="auto").save_pretrained({target})',
        f"T.from_pretrained({source}).save_pretrained({target})",
    )


def merge(folder: Path) -> str:
    """The command that merges the LoRA adapter in ``folder`` into its base model."""
    source, target = _text(folder), _text(resaved(folder, "merged"))
    return _python(
        "from peft import AutoPeftModelForCausalLM as M",
        "from transformers import AutoTokenizer as T",
        f'M.from_pretrained({source}, dtype="auto").merge_and_unload().save_pretrained({target})',
        f"T.from_pretrained({source}).save_pretrained({target})",
    )


def _adapter(folder: Path) -> str:
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    return f"a LoRA adapter (peft) of {base or 'a model that it does not name'}; merge it first: {merge(folder)}"


def _gguf(file: Path) -> str:
    folder, name, target = _text(file.parent), _text(file.name), _text(resaved(file))
    command = _python(
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T",
        f"m = M.from_pretrained({folder}, gguf_file={name})",
        "del m.config.quantization_config, m.hf_quantizer",
        f"m.save_pretrained({target})",
        f"T.from_pretrained({folder}, gguf_file={name}).save_pretrained({target})",
    )
    return f"{file.name} is a GGUF file; if no safetensors of the model can be had, convert it: {command}"


def _verl(file: Path) -> str:
    folder = shlex.quote(str(file.parent))
    target = shlex.quote(str(resaved(file.parent)))
    return (
        f"{file.name} is a shard of verl; merge them: python -m verl.model_merger merge --backend fsdp "
        f"--local_dir {folder} --target_dir {target}"
    )


def _deepspeed(found: Path) -> str:
    folder = found.parent
    target = shlex.quote(str(resaved(folder)))
    script = folder / "zero_to_fp32.py"
    program = shlex.quote(str(script)) if script.is_file() else "-m deepspeed.utils.zero_to_fp32"
    return (
        f"{found.name} belongs to a DeepSpeed checkpoint; merge its shards: python {program} "
        f"{shlex.quote(str(folder))} {target} --safe_serialization, {_COMPLETE}"
    )


def _fsdp(found: Path) -> str:
    folder = found if found.is_dir() else found.parent
    target = shlex.quote(str(resaved(folder)))
    return (
        f"{found.name} is a sharded checkpoint of FSDP; merge it: accelerate merge-weights "
        f"{shlex.quote(str(folder))} {target}, {_COMPLETE}"
    )


def _pickled(file: Path) -> str:
    if file.is_dir():  # DeepSpeed's merger takes the name for a folder
        return _deepspeed(file)
    return f"{file.name} holds pickled weights, which are not read here; {resave(file.parent)}"


def _metas(found: Path) -> str:
    return (
        f"{found.name} is in the format of the model's makers, not in Hugging Face's; download the Hugging Face "
        "version of the model, or convert it with transformers' convert_*_weights_to_hf.py"
    )


def _shard(file: Path) -> str:
    return f"{file.name} is one of several files, but model.safetensors.index.json, which lists them, is missing"


def _other_name(file: Path) -> str:
    return (
        f"{file.name} is not a name that transformers reads; rename the file to model.safetensors if it holds the whole"
        " model"
    )


def _megatron(tracker: Path) -> str:
    return (
        f"{tracker.parent} is a Megatron checkpoint; pass it to --load or --reference-load as it is, or turn it into a "
        "Hugging Face folder with tools/export_hf.py"
    )


# What marks each kind of folder, in the order in which it is looked for: a tool's own files say more than a .bin.
_KINDS = (
    ((ADAPTER,), lambda file: _adapter(file.parent)),
    (("latest_checkpointed_iteration.txt",), _megatron),
    (("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"), _pickled),
    (("model_world_size_*_rank_*.pt", "*/model_world_size_*_rank_*.pt", "*/actor/model_world_size_*_rank_*.pt"), _verl),
    (("zero_to_fp32.py", "global_step[0-9]*"), _deepspeed),
    (("pytorch_model_fsdp_*", "*.distcp"), _fsdp),
    (("*.gguf",), _gguf),
    (("model-*-of-*.safetensors",), _shard),
    (("consolidated*", "original/consolidated*"), _metas),
    (("*.safetensors",), _other_name),
)
