"""What Megatron refuses, in one line that names the flags: the one place that translates its errors, until step 1.

Megatron asserts much about a user's values, late, in words that name no flag, or it ends with exit status 0. What this
program does not check itself keeps Megatron's words, and gets the flags' names.
"""

import argparse
import ast
import errno
import functools
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.training import arguments

from megatron_remit.errors import UserError
from megatron_remit.megatron_flags import differs, spelt

_MEGATRON = Path(arguments.__file__).parents[1]
_OF_VALUES = (AssertionError, ValueError, ImportError)
# Those of OSError that a later start may not meet.
_OF_NETWORK, _OF_DISKS = (ConnectionError, TimeoutError), (errno.EIO, errno.ESTALE)
# Where the words of an assertion do not say what it is about.
_ABOUT_FILE = {
    "pipeline_parallel_layer_layout.py": ("pipeline_model_parallel_layout",),
    "ft_integration.py": ("enable_ft_package",),
}
# Arguments that no flag sets.
_DERIVED = ("rank", "world_size", "data_parallel_size", "transformer_pipeline_model_parallel_size")
_trains = False


@contextmanager
def in_one_line(args: argparse.Namespace, *about: str, kinds: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What Megatron asserts or raises inside about ``args`` becomes a UserError that names the flags it speaks of, and
    so does an end with exit status 0. The cause of the UserError is the original.

    ``about`` are arguments that are named in any case, ``kinds`` errors that speak of them whoever raised them.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if not (isinstance(error, kinds) or _speaks_of_values(error)):
            raise
        raise UserError(_line(args, about, error)) from error


@contextmanager
def until_first_step(args: argparse.Namespace) -> Iterator[None]:
    """As :func:`in_one_line`, until a function of :func:`begins` is called: what a run that trains raises stays."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit):
        if _trains:
            raise
        with in_one_line(args):
            raise


def begins(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``step``, a first step or evaluation: the run trains once it is called."""

    @functools.wraps(step)
    def call(*rest: Any, **named: Any) -> Any:
        global _trains
        _trains = True
        return step(*rest, **named)

    return call


def one_line(
    original: Any,
    *about: str,
    kinds: tuple[type[Exception], ...] = (),
    args_of: Callable[..., argparse.Namespace] = lambda args, *_: args,
) -> Any:
    """Wrap ``original``, a part of Megatron's start: what it refuses becomes one line, as in :func:`in_one_line`.

    ``args_of`` gives the run's arguments from those of a call; by default they are its first.
    """

    @functools.wraps(original)
    def call(*rest: Any, **named: Any) -> Any:
        with in_one_line(args_of(*rest), *about, kinds=kinds):
            return original(*rest, **named)

    return call


def _speaks_of_values(error: BaseException) -> bool:
    """Whether a user's values are the reason. What CUDA, NCCL, disks and networks raise is not: a job is retried."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    if isinstance(error, SystemExit):
        # Megatron's own end on a signal is no refusal.
        own = [frame for frame in frames if _of_megatron(frame)]
        return error.code in (None, 0) and bool(own) and own[-1].name != "_graceful_shutdown"
    if isinstance(error, OSError):
        ours = error.errno is None or (error.filename is not None and error.errno not in _OF_DISKS)
        return ours and not isinstance(error, _OF_NETWORK)
    if isinstance(error, _OF_VALUES):
        return True
    if isinstance(error, RuntimeError):
        return _of_megatron(last) and (last.line or "").startswith("raise")
    return isinstance(error, KeyError) and _of_megatron(last)


def _of_megatron(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(_MEGATRON)


def _line(args: argparse.Namespace, about: tuple[str, ...], error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ended = isinstance(error, SystemExit)
    place = next((frame for frame in reversed(frames) if not ended or _of_megatron(frame)), frames[-1])
    said = " ".join(str(error).split())
    # Arguments are told from prose by how they are spelt.
    words = [name.strip("-").replace("-", "_") for name in re.findall(r"--[\w-]+|\w+_\w+", said)]
    # An assertion without words is quoted instead.
    source = re.findall(r"\b(?:args|self)\.(\w+)", place.line or "")
    names = [*about, *_with_file(args, error), *_ABOUT_FILE.get(Path(place.filename).name, ()), *source, *words]
    values = {name: getattr(args, name) for name in names if name not in _DERIVED and hasattr(args, name)}
    flags = _flags(values) or _flags(_read_around(args, frames))
    if not flags:
        flags = [f"{spelt(name)} (not set)" for name, value in values.items() if value in (None, False)]
    if ended:
        said = "Megatron ends here with exit status 0; its reason is printed above"
    elif isinstance(error, KeyError):
        said = f"Megatron finds no {said}"
    elif not isinstance(error, OSError):
        said = f"Megatron refuses this: {said or place.line}"
    return f"{', '.join(flags) or 'the flags'}: {said} ({Path(place.filename).name}:{place.lineno})"


def _flags(values: dict[str, Any]) -> list[str]:
    """How a user wrote those of the values that say something: any number or text, and a switch that is not as Megatron
    has it by default."""
    switched = {name for name, value in values.items() if isinstance(value, bool) and differs(name, value)}
    said = {name for name, value in values.items() if isinstance(value, int | float | str)}
    shown = [name for name in values if name in switched or (name in said and not isinstance(values[name], bool))]
    return [spelt(name) if name in switched else f"{spelt(name)} {values[name]}" for name in shown]


def _with_file(args: argparse.Namespace, error: BaseException) -> list[str]:
    """The arguments that name the file of an OSError, or a folder that it is in."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return []
    file = Path(error.filename)
    texts = [(name, value) for name, value in vars(args).items() if isinstance(value, str) and value]
    return [name for name, value in texts if file == Path(value) or Path(value) in file.parents]


def _read_around(args: argparse.Namespace, frames: list[traceback.FrameSummary]) -> dict[str, Any]:
    """Of the arguments that Megatron's code reads where an error came from, those that are not as by default.

    The innermost call with such an argument counts.
    """
    for frame in reversed(frames):
        if not _of_megatron(frame) or frame.lineno is None:
            continue
        names = dict.fromkeys(_read_at(frame.filename, frame.lineno))
        values = {name: getattr(args, name) for name in names if name not in _DERIVED and hasattr(args, name)}
        changed = {name: value for name, value in values.items() if differs(name, value)}
        if changed:
            return changed
    return {}


def _read_at(file: str, line: int) -> Iterator[str]:
    """The arguments that the statement at ``line`` reads, then those of the conditions that it stands under."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    for node in reversed(around):
        part = getattr(node, "test", None) if hasattr(node, "body") else node
        for found in ast.walk(part) if part is not None else ():
            if isinstance(found, ast.Attribute) and isinstance(found.value, ast.Name):
                if found.value.id in ("args", "self"):
                    yield found.attr
