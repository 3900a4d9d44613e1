"""Pickles in the bytes of a checkpoint's objects: Transformer Engine keeps a layer's fp8 state as one.

It calls ``pickle.loads`` on the bytes of whatever tensor stands at a layer's ``_extra_state`` (2.12.0:
pytorch/module/base.py and pytorch/ops/op.py, ``set_extra_state``), which no list restricts. Such bytes are gone through
here with the list of what Transformer Engine writes. Nothing that they name is imported or called.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch

_TENSOR = frozenset({("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2")})
# How a tensor's storage is pickled, and what Megatron puts in its place; its one argument is what torch.save wrote.
_STORAGE = frozenset(
    {("torch.storage", "_load_from_bytes"), ("megatron.core.safe_globals", "safe_load_from_bytes")},
)
_RECIPES = frozenset(
    {
        *(("transformer_engine.common.recipe", name) for name in (
            "DelayedScaling", "Float8BlockScaling", "Float8CurrentScaling", "MXFP8BlockScaling", "NVFP4BlockScaling",
            "Format", "_FormatHelper", "MMParams", "QParams",
        )),
        ("megatron.core.extensions.transformer_engine", "TEDelayedScaling"),
    }
)  # fmt: skip


def check_bytes(loaded: Any, load_storage: Callable[[bytes], Any]) -> None:
    """Check that ``pickle.loads`` of any bytes in the object ``loaded`` names nothing beyond Transformer Engine's list.

    Bytes that are no pickle, such as a random number generator's state, are data. ``load_storage`` reads what
    ``torch.save`` wrote, with a list of its own.

    Raises pickle.UnpicklingError: some do, or are damaged after the first class that they name.
    """
    for content in _bytes_in(loaded):
        looking = _Looking(content, load_storage)
        try:
            looking.load()
        except Exception as error:
            # Up to its first class a pickle calls nothing, and pickle.loads fails where this one does.
            if looking.named:
                raise pickle.UnpicklingError(str(error)) from None


def _bytes_in(loaded: Any) -> Iterator[bytes]:
    """The bytes of each tensor and buffer in ``loaded`` and its containers."""
    seen: set[int] = set()
    pending = [loaded]
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            pending += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            pending += one
        elif isinstance(one, (bytes, bytearray)):
            yield bytes(one)
        elif isinstance(one, io.BytesIO):
            yield one.getvalue()
        elif isinstance(one, torch.Tensor):
            try:
                yield one.detach().numpy(force=True).tobytes()  # of any dtype, as Transformer Engine takes them
            except (RuntimeError, TypeError):
                pass  # no numbers, or of a dtype that numpy does not have: not unpickled either


class _Looking(pickle.Unpickler):
    """Goes through a pickle with a stand-in for each class on the list."""

    def __init__(self, content: bytes, load_storage: Callable[[bytes], Any]) -> None:
        super().__init__(io.BytesIO(content))
        self._load_storage = load_storage
        self.named = False

    def find_class(self, module: str, name: str) -> Any:
        if not module or "\0" in module:
            raise pickle.UnpicklingError("no module has this name")  # random bytes
        self.named = True
        if (module, name) in _STORAGE:
            return self._load_storage
        if (module, name) in _TENSOR | _RECIPES:
            return _StandIn
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not on the list of this program")


class _StandIn:
    """Takes what an object of the list would be made of, and does nothing with it."""

    def __new__(cls, *_args: Any, **_named: Any) -> "_StandIn":
        return super().__new__(cls)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Drop it: the objects in it were looked at when they were made."""
