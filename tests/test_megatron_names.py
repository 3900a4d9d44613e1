"""Every name of Megatron that the program uses, and every private one of torch: one that is gone fails by itself.

``tests/megatron_names.txt`` is the list; ``python -m tests.test_megatron_names`` prints it anew. ``make test-next``
runs this file first, since a name that is gone explains most of what else breaks.
"""

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path

import megatron.core
import megatron.training
import pytest

ROOT = Path(__file__).parents[1]
NAMES = (ROOT / "tests/megatron_names.txt").read_text().split()
# Functions whose results' attributes we read, and what they return.
RETURNS = {
    "megatron.training.global_vars.get_signal_handler": "megatron.training.dist_signal_handler.DistributedSignalHandler"
}


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


def _full(node, names):
    """The full name of a name, or of an attribute of one; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _full(node.value, names)
        return owner and f"{owner}.{node.attr}"
    if isinstance(node, ast.Call):
        return RETURNS.get(_full(node.func, names))
    return None


def _attribute(node, names):
    """The full name of ``module.attribute`` or ``Class.attribute``; None for anything else."""
    return _full(node, names) if isinstance(node, ast.Attribute) else None


def _scopes(tree):
    """Each function, and the names in it: what the file imports, and ``name = module.Class``, several at once too."""
    imported = _imported(tree)
    yield tree, imported
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        names = dict(imported)
        for node in (node for node in ast.walk(function) if isinstance(node, ast.Assign)):
            target, value = node.targets[0], node.value
            several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            for one, given in zip(target.elts, value.elts, strict=True) if several else [(target, value)]:
                full = _attribute(given, imported)
                if isinstance(one, ast.Name) and full and full.startswith("megatron."):
                    names[one.id] = full
        yield function, names


@functools.cache
def _bases():
    """The bases of each class of the program, by full name, and the tree of the class."""
    found = {}
    for path, tree in _trees():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        own = {node.name: f"{module}.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)}
        names = own | _imported(tree)
        for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            found[own[node.name]] = ([full for full in (_full(base, names) for base in node.bases) if full], node)
    return found


def _inherited():
    """What our classes override or read of private names of Megatron's classes: ``Class._name``."""
    for name, (bases, tree) in _bases().items():
        ours, theirs = {name}, []
        while bases:
            base, *bases = bases
            if base in _bases():
                ours.add(base)
                bases += _bases()[base][0]
            elif base.startswith("megatron."):
                theirs.append(base)
        touched = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
            if ast.unparse(node.value) in ("self", "cls", "super()"):
                touched.add(node.attr)
        private = [one for one in touched if re.match(r"_(?!_)", one)]
        yield from (f"{base}.{one}" for base in theirs for one in private if _has(_resolve(base), one))


def _has(owner, attribute):
    """Whether a class has an attribute, or gives it to its instances."""
    if hasattr(owner, attribute):
        return True
    if not inspect.isclass(owner):
        return False
    sources = (inspect.getsource(base) for base in owner.__mro__ if base.__module__.startswith("megatron"))
    return any(re.search(rf"self\.{attribute}\b(:[^=\n]+)?\s*=[^=]", source) for source in sources)


def _counts(name):
    root, *parts = name.split(".")
    return root == "megatron" or (root == "torch" and any(re.match(r"_(?!_)", part) for part in parts))


@functools.cache
def used_names():
    """Names that the program imports, attributes that it reads or sets of imported modules and classes, also under
    another name, and what its subclasses take of the private names of Megatron's classes."""
    names = set(_inherited())
    for _, tree in _trees():
        names.update(_imported(tree).values())
        for scope, known in _scopes(tree):
            names.update(filter(None, (_attribute(node, known) for node in ast.walk(scope))))
    return sorted(filter(_counts, names))


def replaced_names():
    """Attributes of Megatron that the program assigns to."""
    names = set()
    for _, tree in _trees():
        for scope, known in _scopes(tree):
            for node in ast.walk(scope):
                targets = node.targets if isinstance(node, ast.Assign) else []
                names.update(filter(None, (_attribute(target, known) for target in targets)))
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
            if not _has(value, part):
                raise AttributeError(f"{name}: {value!r} has no {part}")
            value = getattr(value, part, None)
        return value
    raise ModuleNotFoundError(name)


def test_the_list_has_every_name_that_the_program_uses():
    assert used_names() == NAMES, "run: python -m tests.test_megatron_names > tests/megatron_names.txt"


@pytest.mark.parametrize(
    "name",
    [
        "DistributedOptimizer._set_main_param_and_optimizer_states",  # behind an alias
        "MegatronOptimizer._filter_and_reorder_param_groups",
        "GPTDataset._get_num_tokens_per_epoch",  # of self
        "GPTDataset._build_document_sample_shuffle_indices",  # overridden
        "MLASelfAttention._resolve_qk_norm_config",
        "MLASelfAttention._qkv_down_projection",
        "DistributedSignalHandler._signal_received",  # of a result, and set on instances only
    ],
)
def test_private_names_that_no_import_shows_are_found(name):
    (full,) = (used for used in used_names() if used.endswith(f".{name}"))
    owner = _resolve(full.rpartition(".")[0])
    assert _has(owner, name.split(".")[1]) and not _has(owner, f"{name.split('.')[1]}_gone")


def test_a_private_name_that_is_gone_fails_by_itself(monkeypatch):
    name = "megatron.core.datasets.gpt_dataset.GPTDataset._get_num_tokens_per_epoch"
    owner = _resolve(name.rpartition(".")[0])
    monkeypatch.delattr(owner, "_get_num_tokens_per_epoch")
    with pytest.raises(AttributeError, match=name):
        _resolve(name)


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
