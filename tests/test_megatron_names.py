"""Every name of Megatron that the program uses, and every private one of torch: one that is gone fails by itself.

``tests/megatron_names.txt`` is the list; ``python -m tests.test_megatron_names`` prints it anew. ``make test-next``
runs this file first, since a name that is gone explains most of what else breaks.
"""

import ast
import functools
import importlib
import re
from pathlib import Path

import megatron.core
import megatron.training
import pytest

ROOT = Path(__file__).parents[1]
NAMES = (ROOT / "tests/megatron_names.txt").read_text().split()


def _trees():
    for folder in ("megatron_remit", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def _imported(tree):
    """Local names of what a file imports, with the full name of each."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        if isinstance(node, ast.Import):
            found.update({alias.asname or alias.name: alias.name for alias in node.names if alias.asname})
    return found


def _attribute(node, imported):
    """The full name of ``module.attribute`` or ``Class.attribute``; None for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
        return f"{imported[node.value.id]}.{node.attr}"
    return None


def _counts(name):
    root, *parts = name.split(".")
    return root == "megatron" or (root == "torch" and any(re.match(r"_(?!_)", part) for part in parts))


def used_names():
    """Names that the program imports, and attributes that it reads or sets of imported modules and classes."""
    names = set()
    for _, tree in _trees():
        imported = _imported(tree)
        names.update(imported.values())
        names.update(filter(None, (_attribute(node, imported) for node in ast.walk(tree))))
    return sorted(filter(_counts, names))


def replaced_names():
    """Attributes of Megatron that the program assigns to."""
    names = set()
    for _, tree in _trees():
        imported = _imported(tree)
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            names.update(filter(None, (_attribute(target, imported) for target in targets)))
    return sorted(name for name in names if name.startswith("megatron."))


@functools.cache
def _source():
    """All of Megatron-Core and of its training loop that can call what is replaced."""
    folders = [Path(path) for package in (megatron.core, megatron.training) for path in package.__path__]
    return "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))


def _resolve(name):
    """What ``name`` stands for."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        value = module
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


def test_the_list_has_every_name_that_the_program_uses():
    assert used_names() == NAMES, "run: python -m tests.test_megatron_names > tests/megatron_names.txt"


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_there(name):
    _resolve(name)


@pytest.mark.parametrize("name", replaced_names())
def test_a_replaced_name_is_still_looked_up_by_megatron(name):
    """A replacement that nothing calls any more would leave the run without what it adds, and without an error."""
    _resolve(name)
    attribute = name.rsplit(".", 1)[1]
    used = rf"(?<!def )\b{attribute}\(|[=(,]\s*{attribute}\s*[,)]"
    assert re.search(used, _source()), f"nothing in Megatron calls {attribute}, or passes it on"


if __name__ == "__main__":
    print("\n".join(used_names()))
