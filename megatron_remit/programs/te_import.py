"""A Transformer Engine that is installed but cannot be imported ends a program with one line that says so.

Its shared libraries are built for certain versions of CUDA's (constraints-gpu.txt). With others the import raises
OSError, which Megatron lets through as a traceback, or ImportError, at which Megatron goes on as if it were not there.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_NAME = "transformer_engine"
_REMEDY = (
    "install versions that fit together, such as those of constraints-gpu.txt, or uninstall transformer_engine to run "
    "with this program's own layers"
)


class _Loader(importlib.abc.Loader):
    """Loads the module with its own loader, and watches over that."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._loader.exec_module(module)
            if not hasattr(module, "pytorch"):
                # It imports this part itself, and swallows an ImportError.
                raise ImportError("it has no part for PyTorch: transformer_engine_torch is not installed, or broken")
        except (OSError, ImportError) as error:
            message = f"Transformer Engine is installed but cannot be imported ({type(error).__name__}: {error})"
            print(f"error: {message}; {_REMEDY}", file=sys.stderr)
            raise SystemExit(2) from None


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _NAME:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def watch() -> None:
    """From now on the import of a broken Transformer Engine ends this process. Called again, it does nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
