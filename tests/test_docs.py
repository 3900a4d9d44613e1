"""The docs name files, tests, links and flags that exist, and end their lines where the code does."""

import argparse
import re
from pathlib import Path

import pytest

from tests.ranks import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FOLDERS = (".ci", ".github", "benchmarks", "docs", "examples", "kernels", "megatron_remit", "tests", "tools")
FILES = {
    path.relative_to(ROOT).as_posix()
    for found in (ROOT.glob("*"), *(ROOT.joinpath(folder).rglob("*") for folder in FOLDERS))
    for path in found
    if "__pycache__" not in path.parts
}
WIDTH = 120

# A user's own file in an example, and files of transformers and Megatron.
ELSEWHERE = {"behind.py", "modeling_*.py", "configuration_*.py", "pretrain_gpt.py"}
# Names of files in the changelog that are gone, each in front of what it is called now.
GONE = re.compile(r"- Renamed: .*?\.\n", re.DOTALL)

OWN_FLAG = re.compile(
    r"--(?:objective|remit|rho1|kd|eslm|tokenclean|score|reference|row-seed|cross-entropy-impl)[a-z0-9-]*"
)
FLAGS_OF_OTHERS = {"--reference-hf"}  # the plan's


def text_of(page):
    return GONE.sub("", page.read_text())


def without_code(text):
    """The text without code blocks, fenced or indented."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def code_of(text):
    """The lines of indented code blocks."""
    return [line for line in text.splitlines() if line.startswith("    ")]


def anchors(page):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(name):
    """Whether a path of the repository ends like ``name``, which may have wildcards."""
    pattern = re.escape(name.rstrip("/")).replace(r"\*", "[^/]*")
    return any(re.search(f"(?:^|/){pattern}$", file) for file in FILES)


def names_a_file(word):
    """Whether a word in the docs is meant as a file or folder of this repository."""
    if word in ELSEWHERE or re.search(r"[^\w./*-]|^[./]|\.\.", word):
        return False
    return word.endswith((".py", ".sh")) or (word.split("/")[0] in FOLDERS and "/" in word)


def by_name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_link_leads_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_file_that_is_named_exists(page):
    text = text_of(page)
    words = [span.split(":")[0] for span in re.findall(r"`([^`\n]+)`", without_code(text))]
    words += [word.split("::")[0] for line in code_of(text) for word in re.split(r"[\s,;(){}]+", line)]
    assert sorted({word for word in words if names_a_file(word) and not is_there(word)}) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_name_that_is_said_to_be_in_a_file_is_there(page):
    missing = []
    for name, members in re.findall(r"`([\w./]+\.py): ([\w., ]+)`", text_of(page)):
        sources = [ROOT / file for file in FILES if f"/{file}".endswith(f"/{name}")]
        for member in re.split(r"[., ]+", members):
            if not any(re.search(rf"\b{member}\b", source.read_text()) for source in sources):
                missing.append(f"{name}: {member}")
    assert missing == []


def test_every_test_that_is_named_exists():
    sources = "\n".join((ROOT / file).read_text() for file in FILES if re.fullmatch(r"tests/.*\.py", file))
    tests = set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"\b(test_\w+)(?!\w*\.py)\b", text_of(page))}
    modules = {Path(file).stem for file in FILES}
    assert sorted(named - tests - modules) == []


def test_the_tree_of_the_readme_is_that_of_the_repository():
    missing, folder = [], ""
    tree = text_of(ROOT / "README.md").split("## Where things are")[1].split("## ")[0]
    for line in code_of(tree):
        entry = line.split()[0]
        if not line.startswith("      "):
            folder = entry if entry.endswith("/") else ""
        path = entry if line.startswith("    ") and not line.startswith("      ") else folder + entry
        if not (ROOT / path).exists():
            missing.append(path)
    assert missing == []


def test_the_layers_of_the_architecture_are_the_package():
    layers = text_of(ROOT / "docs" / "architecture.md").split("## Layers")[1].split("## ")[0]
    named = {line.split()[0] for line in code_of(layers)}
    package = {path.stem for path in (ROOT / "megatron_remit").glob("*.py")} | {
        path.parent.name for path in (ROOT / "megatron_remit").glob("*/__init__.py")
    }
    assert named == package - {"__init__"} | {"kernels"}


@pytest.fixture(scope="module")
def own_flags():
    """The flags of the ReMiT group, as the parser has them."""
    from megatron_remit import cpu

    cpu.install()
    from megatron_remit.arguments import add_remit_arguments

    parser = add_remit_arguments(argparse.ArgumentParser())
    (group,) = (group for group in parser._action_groups if group.title == "ReMiT")
    return {flag for action in group._group_actions for flag in action.option_strings if not flag.startswith("--no-")}


def test_the_page_of_flags_lists_the_parsers_flags_and_no_others(own_flags):
    own, _ = (ROOT / "docs" / "flags.md").read_text().split("## Defaults that the program sets")
    assert set(re.findall(r"^\| `(--[a-z0-9-]+)", own, re.MULTILINE)) == own_flags


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_our_flags_are_spelt_as_the_parser_has_them(page, own_flags):
    named = {flag for flag in OWN_FLAG.findall(page.read_text()) if not flag.endswith("-")}
    assert sorted(named - own_flags - FLAGS_OF_OTHERS) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_lines_end_where_those_of_the_code_do(page):
    text = without_code(page.read_text())
    long = [line for line in text.splitlines() if len(line) > WIDTH and not line.startswith("|") and "http" not in line]
    assert long == []
