"""The shape of the code: sizes, and where Megatron's global arguments are read.

``make lint`` checks the imports between the rooms (import-linter, in pyproject.toml).
"""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Resolved, because megatron_remit/kernels is a link to kernels/.
PACKAGE = sorted({path.resolve() for folder in ("megatron_remit", "kernels") for path in (ROOT / folder).rglob("*.py")})
OTHERS = sorted(
    path for folder in ("tools", "benchmarks", "tests", "examples") for path in (ROOT / folder).rglob("*.py")
)

# Hooks that Megatron calls, and classes that it makes, without passing its arguments. The programs may read them too;
# everything else receives the numbers that it needs.
EDGES = {
    "megatron_remit/data/checked.py",
    "megatron_remit/objectives/registry.py",
    "megatron_remit/scoring/dataset.py",
    "megatron_remit/step_metrics.py",
    "megatron_remit/data/batch.py",
    "megatron_remit/patches.py",
    "megatron_remit/data/datasets.py",
    "megatron_remit/scoring/ahead.py",
    "megatron_remit/scoring/scorer.py",
    "megatron_remit/trust/saving.py",
    "megatron_remit/watch/run.py",
}


def name(path):
    return str(path.relative_to(ROOT))


def lines(path):
    return len(path.read_text().splitlines())


def long_functions(path):
    """(name, lines) of each function of a file that has more than 60 lines."""
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    sizes = ((node.name, node.end_lineno - node.lineno + 1) for node in functions)
    return [(function, size) for function, size in sizes if size > 60]


def reads_global_arguments(path):
    """Whether a file imports ``get_args`` from Megatron or calls it as an attribute of one of its modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "get_args" for alias in node.names):
            return True
        if isinstance(node, ast.Attribute) and node.attr == "get_args":
            return True
    return False


@pytest.mark.parametrize("files", [PACKAGE, OTHERS], ids=["package", "others"])
def test_no_file_is_longer_than_300_lines(files):
    assert {name(path): lines(path) for path in files if lines(path) > 300} == {}


@pytest.mark.parametrize("files", [PACKAGE, OTHERS], ids=["package", "others"])
def test_no_function_is_longer_than_60_lines(files):
    assert {name(path): long_functions(path) for path in files if long_functions(path)} == {}


def test_a_package_file_is_a_page_or_two_long():
    """Much shorter files would be too many doors, much longer ones have more than one subject."""
    sizes = [lines(path) for path in PACKAGE if path.name != "__init__.py"]
    assert 110 <= statistics.median(sizes) <= 170


def test_the_global_arguments_are_read_at_the_edges_only():
    readers = {name(path) for path in PACKAGE if reads_global_arguments(path)}
    assert {path for path in readers - EDGES if not path.startswith("megatron_remit/programs/")} == set()


def test_the_list_of_edges_is_up_to_date():
    assert {path for path in EDGES if not reads_global_arguments(ROOT / path)} == set()


def test_the_package_finds_the_kernels_through_a_link():
    """Type checkers, import-linter and editors follow a link; an import hook of the installation they would not see."""
    assert (ROOT / "megatron_remit/kernels").is_symlink()
    assert (ROOT / "megatron_remit/kernels").resolve() == ROOT / "kernels"
