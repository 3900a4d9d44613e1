"""The help of the flags: this project's alone (``--help-remit``), and Megatron's with it."""

import argparse
import re

import pytest
from megatron.training import arguments

from megatron_remit import cpu, patches
from megatron_remit.arguments import add_remit_arguments

cpu.install()
patches.apply()

NO_DEFAULT = (None, False, argparse.SUPPRESS)


def parser_of_remit():
    return add_remit_arguments(argparse.ArgumentParser(prog="pretrain", allow_abbrev=False), [])


def test_help_remit_shows_each_flag_with_its_default_and_the_examples(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    parser = parser_of_remit()
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help-remit"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    shown = {part.split()[0].rstrip(","): " ".join(part.split()) for part in re.split(r"\n  (?=--)", text)}
    (group,) = [group for group in parser._action_groups if group.title == "ReMiT"]
    for action in group._group_actions:
        part = shown[action.option_strings[0]]
        if not any(action.default is none for none in NO_DEFAULT):
            assert f"(default: {action.default})" in part or "default" in action.help.lower()
    assert shown["--score-wait"].endswith("(default: 0.0)")
    assert "\n  --load DIR --use-checkpoint-args ... --objective remit --reference-load RL_DIR\n" in text


def test_each_help_text_can_be_printed():
    """Python 3.14 formats a text when its flag is added, by the formatter of the parser."""
    parser = add_remit_arguments(arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)), [])
    formatter = parser._get_formatter()
    for action in parser._actions:
        assert action.help is None or formatter._expand_help(action)
    assert len(parser._actions) > 800 and "--reference-load" in parser.format_help()


def test_this_projects_texts_need_no_mending():
    """They are valid %-formats for argparse's own formatter."""
    formatter = argparse.HelpFormatter("pretrain")
    for action in parser_of_remit()._actions:
        assert formatter._expand_help(action)
