"""What a process of the simulation replaces, so that the training program runs on fake CUDA tensors.

Training imports nothing of this: the changes live in the simulation's own process (``programs/simulated_step.py``) and
end with it. Tensors carry shape, type and device, but no numbers; collectives go to torch's fake process group.
"""

import sys
import traceback
from typing import Any

import torch
import torch.distributed._tools.fake_collectives
from megatron.core.optimizer import clip_grads
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as megatron_random
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import bias
from torch.utils.data import DataLoader

from megatron_remit.simulate import stand_ins
from megatron_remit.simulate.ledger import Ledger, source_line


class Fake(FakeTensorMode):
    """A fake mode in which the host may read a value: it gets a harmless one, and the line is written down."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._ledger = ledger

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._read(args[0])
        if func.namespace == "c10d" and "coalesced" in str(func):
            return FakeWork().boxed()  # torch has no fake version of these
        if _to_host(func, args, kwargs or {}):
            self._ledger.wait()
        return super().dispatch(func, types, args, kwargs)

    def _read(self, value: torch.Tensor) -> bool | float | int:
        if value.device.type == "cuda":
            self._ledger.wait()
        if "rerun_state_machine" in source_line():
            return 0  # no validation failed
        if value.dtype == torch.bool:
            return False
        return 1.0 if value.dtype.is_floating_point else 1


def _to_host(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operator copies from the GPU to the host, and the host waits for it."""
    if func is torch.ops.aten._to_copy.default:
        source, to = args[0], kwargs.get("device") or args[0].device
        return source.device.type == "cuda" and to.type == "cpu" and not kwargs.get("non_blocking")
    if func is torch.ops.aten.copy_.default:
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        return args[1].device.type == "cuda" and args[0].device.type == "cpu" and not non_blocking
    return False


class _LowerRight:
    """Stands for torch's ``causal_lower_right``, a tensor class, which a fake mode cannot make."""

    variant = bias.CausalVariant.LOWER_RIGHT

    def __init__(self, queries: int, keys: int) -> None:
        self.seq_len_q, self.seq_len_kv = queries, keys

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return bias.CausalBias._dispatch(*args, **(kwargs or {}))


def install(ledger: Ledger) -> None:
    """Replace what fake tensors cannot go through, and give the ledger its phases."""
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]
    stand_ins.install_kernels(ledger)
    stand_ins.install_experts(ledger)
    bias.causal_lower_right = _LowerRight  # type: ignore[assignment]
    # A generator's state is bytes that it reads; fake ones have none.
    megatron_random._set_cuda_rng_state = lambda *_, **__: None
    for owner in (torch.cuda, torch.cuda.Event, torch.cuda.Stream):
        setattr(owner, "synchronize", lambda *_: ledger.wait())  # noqa: B010  the three have no type in common
    _install_distributed()
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    torch.utils.data.DataLoader = _Loader  # type: ignore[misc]
    # apex's and TE's norm of all gradients is one pass over them; here it reads what it is given.
    clip_grads.l2_norm_impl = lambda _chunk, _flag, lists, *_: (_norm(lists, ledger), None)
    # Megatron's names, as its schedules call them.
    for name, phase in (("forward_step", "policy forward"), ("backward_step", "policy backward")):
        setattr(schedules, name, _in_phase(getattr(schedules, name), ledger, phase))


def _norm(lists: list[list[torch.Tensor]], ledger: Ledger) -> torch.Tensor:
    ledger.add("l2norm", sum(tensor.numel() * tensor.element_size() for tensors in lists for tensor in tensors))
    return torch.zeros(1, device="cuda")


def _in_phase(function: Any, ledger: Ledger, phase: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        # The reference's forward steps belong to the reference.
        with ledger.named(ledger.phase if ledger.phase.startswith("reference") else phase):
            return function(*args, **kwargs)

    return call


def _apply(self: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """torch's own swaps a parameter's content in place, which a fake tensor refuses: put a new parameter there."""
    for child in self.children():
        child._apply(function)
    for name, parameter in self._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            new = function(parameter)
        if new is parameter:
            continue
        replaced = torch.nn.Parameter(new.detach(), parameter.requires_grad)
        for attribute, value in vars(parameter).items():
            vars(replaced).setdefault(attribute, value)
        self._parameters[name] = replaced
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = function(buffer)
    return self


def _install_distributed() -> None:
    """Groups of torch's fake backend, and objects that every rank is taken to have alike."""
    new_group = torch.distributed.new_group
    torch.distributed.new_group = lambda *args, **kwargs: new_group(
        *args, **{**kwargs, "backend": "fake", "pg_options": None}
    )

    def all_gather_object(out: list[Any], value: Any, group: Any = None) -> None:
        out[:] = [value] * len(out)

    def gather_object(value: Any, out: list[Any] | None = None, *_: Any, **__: Any) -> None:
        if out:
            out[:] = [value] * len(out)

    torch.distributed.all_gather_object = all_gather_object  # type: ignore[assignment]
    torch.distributed.gather_object = gather_object  # type: ignore[assignment]
    torch.distributed.broadcast_object_list = lambda *_, **__: None


class _Loader(DataLoader):
    """Reads rows in this process: there is no memory to pin, and fake modes do not reach workers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = {"pin_memory": False, "num_workers": 0, "persistent_workers": False, "prefetch_factor": None}
        super().__init__(*args, **{**kwargs, **own, "multiprocessing_context": None})


def place_of(error: BaseException) -> str:
    """The last line of this project or Megatron in the error's traceback."""
    frames = traceback.extract_tb(error.__traceback__) if error.__traceback__ else []
    for frame in reversed(frames):
        if "megatron" in frame.filename and "/simulate" not in frame.filename:
            short = frame.filename
            return f"{short[max(short.rfind('/megatron/'), short.rfind('/megatron_remit/')) + 1 :]}:{frame.lineno}"
    return sys.argv[0]
