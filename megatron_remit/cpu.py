"""CPU in place of CUDA, so that Megatron's own loop runs under gloo where there is no GPU.

Megatron 0.19.2 names the device in its code (``device='cuda'``, ``tensor.cuda()``, ``torch.cuda.current_device()``).
:func:`install` replaces those named functions. A global ``TorchFunctionMode`` would reach the same calls, but every
operator of every step would pay for it; replacing the factories costs only their own callers (docs/cpu.md has the
figures). It does not matter whether Megatron's modules are imported before or after the call.

With CUDA present nothing is replaced.
"""

import collections
import functools
import os
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._device import _device_constructors

# Every factory and conversion that Megatron calls with a device.
_FACTORIES = (
    "tensor as_tensor empty zeros ones full arange linspace rand randn randint randperm eye "
    "empty_like zeros_like ones_like full_like rand_like randn_like empty_strided"
).split()
_METHODS = "to new_empty new_zeros new_ones new_full new_tensor".split()

_CPU = torch.device("cpu")
_installed = False


def has_cuda() -> bool:
    """Whether this process drives a CUDA device (False after :func:`install` replaced it by the CPU)."""
    return torch.cuda.is_available()


def install() -> None:
    """Make the calls Megatron addresses to CUDA work on the CPU. Does nothing on a machine with CUDA, or twice."""
    global _installed
    if _installed or has_cuda():
        return
    _installed = True
    _disable_compilation()
    # Megatron insists on it for tensor parallelism, where it orders kernels on a GPU.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    # `with torch.device(...)`, with which transformers builds models on the meta device, lists the factories once and
    # knows them by identity: listed after the replacement, none of the real ones would be among them.
    _device_constructors()
    replacements: list[tuple[Any, str, Any]] = [(torch, name, _on_cpu(getattr(torch, name))) for name in _FACTORIES]
    replacements += [(torch.Tensor, name, _on_cpu(getattr(torch.Tensor, name))) for name in _METHODS]
    replacements += [
        (torch.Tensor, "cuda", lambda self, *args, **kwargs: self),
        (torch.nn.Module, "cuda", lambda self, *args, **kwargs: self),
        (torch.Tensor, "type", _tensor_type(torch.Tensor.type)),
        (torch.distributed, "init_process_group", _without_device_id(torch.distributed.init_process_group)),
        (torch.distributed, "all_to_all_single", _with_plain_sizes(torch.distributed.all_to_all_single)),
        (torch.distributed, "all_gather", _of_uneven_parts(torch.distributed.all_gather)),
    ]
    functions = _cuda_functions()
    replacements += [(torch.cuda, name, value) for name, value in functions.items()]
    replacements += [(torch.cuda.random, name, functions[name]) for name in ("get_rng_state", "set_rng_state")]
    _rebind_in_megatron(replacements)
    for owner, name, value in replacements:
        setattr(owner, name, value)


def leave_out_compiler() -> None:
    """Give functions back as they are where ``torch.compile`` is asked for, so that its modules are not imported.

    Megatron asks while it is imported, for its fusions. The compiler's import takes a quarter of a program's start, and
    the compiled functions would run eagerly (:func:`_disable_compilation`). The package calls this before Megatron is
    first imported. With CUDA, or TORCH_COMPILE_DISABLE set to anything but 1, nothing changes.
    """
    if not has_cuda() and os.environ.get("TORCH_COMPILE_DISABLE", "1") == "1":
        torch.compile = _as_it_is


def _as_it_is(model: Any = None, **_settings: Any) -> Any:
    """In ``torch.compile``'s place, which decorates a function with settings or without."""
    return (lambda function: function) if model is None else model


def _disable_compilation() -> None:
    """Megatron warms up its torch.compile'd fusions at start; on a CPU that compiles C++ for seconds and gains nothing.

    torch reads the variable when its compiler is imported; functions that were compiled before are told to run eagerly.
    """
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if os.environ["TORCH_COMPILE_DISABLE"] == "1" and "torch._dynamo" in sys.modules:
        torch.compiler.set_stance("force_eager")


def _rebind_in_megatron(replacements: list[tuple[Any, str, Any]]) -> None:
    """Modules of Megatron that were imported before hold originals under names of their own: replace them there, too.

    In 0.19.2 ``from torch.cuda import _lazy_call, _lazy_init, device`` binds them in tensor_parallel/random.py and in
    megatron_fsdp/utils.py, and transformer/module.py keeps tuples of CUDA's tensor types. One default argument holds a
    factory (``ShardedTensor.init_data``); checkpointing gives it the CPU's device, so it may stay.
    """
    originals = [(getattr(owner, name, None), value) for owner, name, value in replacements]
    # Only functions and types: default_generators is an empty tuple without CUDA, which Python has only one of.
    by_original = {id(original): value for original, value in originals if callable(original)}
    for module_name, module in list(sys.modules.items()):
        if module is None or not module_name.startswith("megatron"):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in by_original:
                setattr(module, name, by_original[id(value)])
            elif type(value) is tuple and any(id(item) in by_original for item in value):
                setattr(module, name, tuple(by_original.get(id(item), item) for item in value))


def default_arguments() -> dict[str, Any]:
    """Defaults of Megatron's flags for a run without CUDA. They become the parser's defaults, so a given flag wins."""
    return {
        "distributed_backend": "gloo",
        "transformer_impl": "local",
        "use_cpu_initialization": True,
        "no_persist_layer_norm": True,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_gelu_fusion": False,
        "bias_swiglu_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
        "attention_backend": "unfused",  # argparse reads a default that is text as it reads a given value
        "num_workers": 0,
    }


def _is_cuda(device: object) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


def _on_cpu(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = _CPU
        elif function.__name__ == "to" and len(args) > 1 and not isinstance(args[1], int) and _is_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        # Pinned memory is page-locked for a GPU's copy engine; without one the request raises.
        kwargs.pop("pin_memory", None)
        return function(*args, **kwargs)

    return call


def _tensor_type(original: Callable) -> Callable:
    """``Tensor.type()`` without an argument names the class; the distributed optimizer compares it to CUDA's names."""

    @functools.wraps(original)
    def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            target = args[0] if args else kwargs["dtype"]
            if isinstance(target, str):
                target = target.replace("torch.cuda.", "torch.")
            return original(self, target)
        return original(self).replace("torch.", "torch.cuda.", 1)

    return call


def _without_device_id(init_process_group: Callable) -> Callable:
    @functools.wraps(init_process_group)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_id", None)
        return init_process_group(*args, **kwargs)

    return call


def _with_plain_sizes(all_to_all_single: Callable) -> Callable:
    """Megatron's dispatcher of tokens to experts counts on the GPU and copies the counts to numpy arrays. Here they are
    tensors already, which torch does not take as sizes."""

    @functools.wraps(all_to_all_single)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in ("output_split_sizes", "input_split_sizes"):
            if isinstance(kwargs.get(name), torch.Tensor):
                kwargs[name] = kwargs[name].tolist()
        return all_to_all_single(*args, **kwargs)

    return call


def _of_uneven_parts(all_gather: Callable) -> Callable:
    """NCCL gathers parts of different lengths, as experts have tokens; gloo does not, so each rank sends its own."""

    @functools.wraps(all_gather)
    def call(tensor_list: list[torch.Tensor], tensor: torch.Tensor, group: Any = None, async_op: bool = False) -> Any:
        if len({part.shape for part in tensor_list}) <= 1:
            return all_gather(tensor_list, tensor, group=group, async_op=async_op)
        tensor_list[torch.distributed.get_rank(group)].copy_(tensor)
        for rank, part in enumerate(tensor_list):
            torch.distributed.broadcast(part, group=group, group_src=rank)
        return None

    return call


class _Stream:
    """Stands for a CUDA stream or event: on the CPU every operation has ended when its call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cuda_stream = 0
        self.device = _CPU

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def record(self, *args: Any) -> None: ...

    def wait(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: "_Stream") -> None: ...

    def wait_event(self, event: "_Stream") -> None: ...

    def record_event(self, event: "_Stream | None" = None) -> "_Stream":
        return event or _Stream()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "_Stream") -> float:
        return 0.0


def _cuda_functions() -> dict[str, Any]:
    """What stands for the functions, types and generators of ``torch.cuda``, by name."""
    properties = types.SimpleNamespace(
        name="cpu",
        major=8,
        minor=0,
        total_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        multi_processor_count=os.cpu_count() or 1,
    )
    stream = _Stream()
    replacements: dict[str, Any] = {
        "current_device": lambda: _CPU,
        "device_count": lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "set_device": lambda device: None,
        "synchronize": lambda *args: None,
        "empty_cache": lambda: None,
        "Stream": _Stream,
        "Event": _Stream,
        "current_stream": lambda *args: stream,
        "default_stream": lambda *args: stream,
        "set_stream": lambda *args: None,
        "stream": lambda *args: nullcontext(),
        "device": lambda *args: nullcontext(),
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "get_device_properties": lambda *args: properties,
        "get_device_capability": lambda *args: (properties.major, properties.minor),
        "get_device_name": lambda *args: properties.name,
        "mem_get_info": lambda *args: (properties.total_memory, properties.total_memory),
        "is_current_stream_capturing": lambda: False,
    }
    for name in "memory_allocated max_memory_allocated memory_reserved max_memory_reserved device_memory_used".split():
        replacements[name] = lambda *args: 0
    replacements["memory_stats"] = lambda *args: dict.fromkeys(
        (
            "allocated_bytes.all.current",
            "allocated_bytes.all.peak",
            "allocation.all.current",
            "reserved_bytes.all.current",
            "reserved_bytes.all.peak",
        ),
        0,
    )
    replacements["reset_peak_memory_stats"] = lambda *args: None
    for name in ("Float", "Double", "Half", "BFloat16", "Byte", "Int", "Long"):
        # Types, not functions: Megatron calls them and also asks isinstance of them.
        replacements[f"{name}Tensor"] = getattr(torch, f"{name}Tensor")
    # The random-state tracker asks for the default generator by device index.
    replacements["default_generators"] = collections.defaultdict(lambda: torch.default_generator)
    replacements["_lazy_call"] = lambda function, **kwargs: function()
    replacements["_lazy_init"] = lambda: None
    return replacements
