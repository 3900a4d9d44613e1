"""The weights of a Hugging Face folder: checked as a whole by their names, shapes and dtypes, read one at a time."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_remit.convert.hf_folder import what_is_there
from megatron_remit.convert.hf_io import INDEX, SINGLE, read_json
from megatron_remit.convert.hf_names import EMBEDDING, LM_HEAD, is_buffer, plain_names
from megatron_remit.errors import UserError, note

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_CONVERTIBLE = _STORED | {"F64": torch.float64}
_BLOCK = 16_000_000  # values of each of two tied tensors that are compared at a time


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: its file, its name there, its shape, and its dtype as safetensors writes it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class HfTensors:
    """The tensors of a folder's safetensors files: all names, shapes and dtypes, and the values one tensor at a time.

    One file is open at a time. Tensors are read, not mapped: a mapped file would count as memory of this process for as
    long as it is open.

    ``dtype`` ("bf16", "fp16", "fp32") converts the tensors to one dtype; None keeps them as they are stored.
    """

    def __init__(self, folder: Path, dtype: str | None = None) -> None:
        self._folder = folder
        self._target = None if dtype is None else DTYPES[dtype]
        self._found: dict[str, Stored] = {}
        self._open: tuple[Path | None, Any] = (None, None)
        # transformers 5.23 looks in this order (modeling_utils._get_resolved_checkpoint_files).
        if (folder / SINGLE).is_file():
            self._add(folder / SINGLE)
            self._note_unread_index()
        elif (folder / INDEX).is_file():
            self._add_indexed()
        else:
            raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} is there; {what_is_there(folder)}")
        self._found = {name: stored for name, stored in self._found.items() if not is_buffer(name)}

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({stored.path for stored in self._found.values()})

    def _note_unread_index(self) -> None:
        if not (self._folder / INDEX).is_file():
            return
        weight_map = read_json(self._folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or set(map(str, weight_map.values())) != {SINGLE}:
            note(f"{self._folder}: {SINGLE} is read, as transformers does, and the files that {INDEX} names are not")

    def _add_indexed(self) -> None:
        weight_map = _weight_map(self._folder / INDEX)
        for file in sorted(set(weight_map.values())):
            self._add(self._folder / file)
        for name, file in weight_map.items():
            if name not in self._found or self._found[name].path != self._folder / file:
                raise UserError(f"{self._folder / file}: tensor {name} is missing, though {INDEX} promises it")

    def _add(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file, though {INDEX} names it; copy it again")
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():
                    if name in self._found:
                        raise UserError(f"{path}: tensor {name} is also in {self._found[name].path.name}; remove one")
                    part = file.get_slice(name)
                    self._found[name] = Stored(path, name, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise UserError(f"{path}: damaged or truncated safetensors file ({error}); copy it again") from None

    def check(self, expected: Mapping[str, tuple[int, ...]], tied: bool = False) -> torch.dtype:
        """Check that the folder holds exactly the ``expected`` tensors (name -> shape), and return their one dtype.

        A wrapper's part of the names is taken off. With ``tied`` embeddings either of the two tensors is enough; both
        must be equal.

        Raises:
            UserError: a tensor is missing, has another shape or is not expected; or there are several dtypes, or one
                that Megatron does not train in. The message names the first such tensor.
        """
        names, changes = plain_names(self._folder, self._found, {*expected, LM_HEAD})
        if changes:
            note(f"{self._folder}: the tensors' names are read {' and '.join(changes)}")
        self._found = {plain: self._found[name] for plain, name in names.items()}
        if tied:
            self._untie(expected)
        for name, shape in expected.items():
            if name not in self._found:
                raise UserError(f"{self._folder}: tensor {name} {list(shape)} is missing{self._reason(name)}")
            stored = self._found[name]
            if stored.shape != shape:
                empty = "; DeepSpeed's ZeRO stage 3 leaves such tensors: merge its checkpoint with zero_to_fp32.py" * (
                    0 in stored.shape
                )
                raise UserError(
                    f"{stored.path}: tensor {stored.name} has shape {list(stored.shape)}, expected {list(shape)}{empty}"
                )
        for name, stored in self._found.items():
            if name not in expected:
                raise UserError(f"{stored.path}: unexpected tensor {stored.name}; config.json has no place for it")
        return self._one_dtype()

    def _reason(self, name: str) -> str:
        """What in the folder explains that a tensor is missing, as the end of a sentence."""
        if name == LM_HEAD:
            return "; if its output layer is the embedding, set tie_word_embeddings to true in config.json"
        like = next((stored for stored in self._found if stored.endswith(f".{name}")), None)
        return f", though {like} is there" if like else ""

    def _untie(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Leave one of the two names of a tied tensor, as transformers does (``PreTrainedModel.tie_weights``)."""
        head, embedding = self._found.get(LM_HEAD), self._found.get(EMBEDDING)
        if head is None or EMBEDDING not in expected:
            return
        if embedding is None:
            note(f"{head.path}: {EMBEDDING} is not there; the tied {head.name} is read in its place")
            self._found[EMBEDDING] = head
        elif self._equal(head, embedding):
            note(f"{head.path}: {head.name} is left out; tie_word_embeddings is true and it equals {embedding.name}")
        else:
            raise UserError(
                f"{head.path}: {head.name} {list(head.shape)} differs from {embedding.name} {list(embedding.shape)}, "
                "but tie_word_embeddings is true in config.json (or by its class's default): set it to false if the "
                f"model was trained untied, or remove {head.name}"
            )
        del self._found[LM_HEAD]

    def _equal(self, one: Stored, other: Stored) -> bool:
        """Whether two tensors have the same values, read block by block."""
        if one.shape != other.shape or not {one.dtype, other.dtype} <= _CONVERTIBLE.keys():
            return False
        blocks = zip(_blocks(one), _blocks(other), strict=True)
        for first, second in blocks:
            common = self._target or torch.promote_types(first.dtype, second.dtype)
            if not torch.equal(first.to(common), second.to(common)):
                return False
        return True

    def _one_dtype(self) -> torch.dtype:
        counts = Counter(stored.dtype for stored in self._found.values())
        readable = _STORED.keys() if self._target is None else _CONVERTIBLE.keys()
        if len(counts) == 1 and counts.keys() <= readable:
            return self._target or _STORED[next(iter(counts))]
        first = {stored.dtype: name for name, stored in reversed(self._found.items())}
        if len(counts) == 1 or not counts.keys() <= _CONVERTIBLE.keys():
            name, dtype = next((first[dtype], dtype) for dtype in counts if dtype not in readable)
            raise UserError(
                f"{self._folder}: tensors of dtype {dtype}, such as {name}; save the model in one of {sorted(_STORED)}"
            )
        if self._target is not None:
            return self._target
        listed = ", ".join(f"{dtype} ({count}, such as {first[dtype]})" for dtype, count in sorted(counts.items()))
        raise UserError(f"{self._folder}: several dtypes: {listed}; choose one with --dtype {' or '.join(DTYPES)}")

    def get(self, name: str) -> torch.Tensor:
        """The tensor ``name``, in the dtype in which it is stored or the one asked for.

        Raises:
            UserError: it holds NaN or infinity, or would after the conversion.
        """
        stored = self._found[name]
        tensor = self._read(stored)
        if not _finite(tensor):
            bad = tensor.numel() - int(torch.isfinite(tensor).sum())
            raise UserError(
                f"{stored.path}: tensor {stored.name} holds NaN or infinity in {bad} of {tensor.numel()} places; the "
                "model is damaged: use an earlier checkpoint of its training"
            )
        if self._target is None or tensor.dtype == self._target:
            return tensor
        converted = tensor.to(self._target)
        if not _finite(converted):
            raise UserError(f"{stored.path}: tensor {stored.name} has values beyond --dtype's range; use bf16 or fp32")
        return converted

    def _read(self, stored: Stored) -> torch.Tensor:
        if self._open[0] != stored.path:
            self._open = (stored.path, safe_open(str(stored.path), framework="pt", backend="pread"))
        tensor: torch.Tensor = self._open[1].get_tensor(stored.name)
        return tensor


def _blocks(stored: Stored) -> Iterator[torch.Tensor]:
    """The values of a tensor in order, ``_BLOCK`` at a time: safetensors would read the whole tensor for each part."""
    with stored.path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(start - 8))[stored.name]["data_offsets"]
        file.seek(start + begin)
        dtype = _CONVERTIBLE[stored.dtype]
        while begin < end:
            block = bytearray(file.read(min(end - begin, _BLOCK * dtype.itemsize)))
            begin += len(block)
            yield torch.frombuffer(block, dtype=dtype)


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, without a mask as large as the tensor."""
    return tensor.numel() == 0 or all(torch.isfinite(end).item() for end in torch.aminmax(tensor))


def _weight_map(index: Path) -> dict[str, str]:
    """The index' table of tensors and files. A folder or file in a path may be a link: weights are large, and nothing
    but tensors of the model is taken from them.

    Raises:
        UserError: there is none, or a file in it is no path inside the folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: it has no weight_map from tensors to files; copy it again from its source")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise UserError(f"{index}: weight_map has {file!r} for {name}; expected the name of a file")
        if PurePath(file).is_absolute() or ".." in PurePath(file).parts:
            raise UserError(f"{index}: weight_map has {file!r} for {name}; expected a file inside {index.parent}")
    return weight_map
