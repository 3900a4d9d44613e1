"""Transformer Engine's own Python layers without its compiled part, so that they can be built on a CPU.

A stand-in takes the place of the extension ``transformer_engine_torch``: any name in it is there, and computes nothing.
Layers are made, loaded and saved by TE's own code; they cannot run.
"""

import enum
import importlib
import importlib.util
import os
import sys
import types

# The members of the extension's enum of number types, which TE's Python maps to torch's.
_TYPES = "Byte Int16 Int32 Int64 Float32 Float16 BFloat16 Float8E4M3 Float8E5M2 Float8E8M0 Float4E2M1"


class _Name(type):
    """A class whose attributes are there when they are asked for: numbers for constants, else classes like it."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = len(vars(cls)) if name.isupper() or name[0] == "k" or name.startswith("NVTE_") else _named(name)
        setattr(cls, name, value)
        return value


def _named(name):
    return _Name(name, (), {"__init__": lambda self, *_, **__: None, "__module__": "transformer_engine_torch"})


class _Extension(types.ModuleType):
    DType = enum.IntEnum("DType", {f"k{name}": number for number, name in enumerate(_TYPES.split())})

    def __init__(self, name):
        super().__init__(name)
        self.get_cudnn_version = lambda: 92000  # an own entry, which `import *` finds

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = _named(name)
        setattr(self, name, value)
        return value


def install(folder):
    """Import ``transformer_engine`` from ``folder``, an unpacked wheel, with the stand-in."""
    sys.path.insert(0, str(folder))
    # The second translates layers to ONNX with packages of its own; the third serves generation.
    for name in ("transformer_engine_torch", "transformer_engine.pytorch.onnx_extensions", "einops"):
        sys.modules[name] = _Extension(name)
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # common loads no library then
    package = types.ModuleType("transformer_engine")
    package.__path__ = list(importlib.util.find_spec("transformer_engine").submodule_search_locations)
    sys.modules["transformer_engine"] = package
    common = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda _name: None
    del sys.modules["transformer_engine"]
    package = importlib.import_module("transformer_engine")
    package.common = common
    importlib.import_module("transformer_engine.pytorch")
