"""One version: in pyproject.toml, in what is installed, at the head of the changelog, and in the citation."""

import re
import subprocess
import tomllib
from importlib.metadata import version

import pytest

from tests.ranks import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_changelog_begins_with_what_is_unreleased_and_then_this_version():
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert headings[:2] == ["Unreleased", PROJECT["version"]]
    released = [tuple(map(int, heading.split("."))) for heading in headings[1:]]
    assert released == sorted(released, reverse=True)


def test_the_installed_version_is_that_of_the_project():
    assert version("megatron-remit") == PROJECT["version"]


def test_the_newest_tag_is_no_later_than_the_version():
    done = subprocess.run(["git", "tag", "--list", "v*"], cwd=ROOT, capture_output=True, text=True)
    tags = [tag for tag in done.stdout.split() if re.fullmatch(r"v\d+\.\d+\.\d+", tag)]
    if done.returncode or not tags:
        pytest.skip("no tags here")
    newest = max(tuple(map(int, tag[1:].split("."))) for tag in tags)
    assert newest <= tuple(map(int, PROJECT["version"].split(".")))


def test_the_citation_names_the_paper_and_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert "arXiv:2602.03075" in text and f"license: {PROJECT['license']}" in text
    assert re.findall(r"^version: (.+)$", text, re.MULTILINE) == [PROJECT["version"]]
