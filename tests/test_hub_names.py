"""Where a folder is expected and the name of a repository on the hub is given, the error says how to download it."""

import os
from argparse import Namespace
from pathlib import Path

import pytest

from megatron_remit.analysis.inputs import named_folders
from megatron_remit.convert.hf_folder import check_model_folder
from megatron_remit.data.tokenizer import load_encoder
from megatron_remit.errors import UserError
from megatron_remit.evaluation.run import _models
from megatron_remit.launch import values
from megatron_remit.programs.commands import plan_command
from megatron_remit.trust.loading import check_loaded

NAME = "allenai/OLMo-2-0425-1B"


def load(argument):
    flags = {"ckpt_step": None, "finetune": True, "use_checkpoint_args": True, "num_layers": None}
    check_loaded(Namespace(load=argument, pretrained_checkpoint=None, trust_checkpoint=False, **flags))


PLACES = {
    "BASE_HF": lambda: values.folder("BASE_HF", NAME, {}),
    "RL_HF": lambda: values.reference("RL_HF", NAME, {"objective": "remit"}),
    "plan --base-hf": plan_command,
    "--tokenizer-model": lambda: load_encoder("HuggingFaceTokenizer", Path(NAME)),
    "compare --model": lambda: named_folders("--model", [f"base={NAME}"]),
    "evaluate --model": lambda: _models([f"base={NAME}"]),
    "import --hf": lambda: check_model_folder(Path(NAME)),
    "--load": lambda: load(NAME),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_name_of_a_repository_in_place_of_a_folder(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["plan", "--base-hf", NAME, "--gpus", "8", "--", "--bf16"])
    with pytest.raises(UserError, match=f"{NAME}.*: hf download NAME --local-dir DIR") as caught:
        PLACES[place]()
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []
