"""What a method does to each kind of token: the objectives' own weights and choice, and the truth of the world."""

import json

import pytest
import torch
from token_kinds import read_rows, summarise
from transformers import AutoTokenizer
from world.document import END, PAD, RESULT, SLIP


def test_weights_and_choice_are_those_of_the_objectives_for_each_kind():
    policy_BS, reference_BS = torch.tensor([[3.0, 1.0, 1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0]])
    hard, plain, lost = summarise("base", policy_BS, reference_BS, [["a", "b", "b", "b", "c"]])
    assert [one["delta"] for one in (hard, plain, lost)] == [2.0, 0.0, -1.0]
    assert [one["kept"] for one in (hard, plain, lost)] == [1.0, 1.0, 0.0]
    # The mean delta is 0.2: 2 * sigmoid(-0.2) = 0.9003, the other two are clipped.
    assert [one["weight"] for one in (hard, plain, lost)] == pytest.approx([1.2, 0.9003, 0.8], abs=1e-4)
    assert hard["weight without clip"] == pytest.approx(2 / (1 + torch.e**-1.8), abs=1e-4)


def test_padding_has_no_weight_and_no_entry():
    policy_BS, reference_BS = torch.tensor([[3.0, 1.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    padded = summarise("base", policy_BS, reference_BS, [["a", "b", PAD]])
    assert padded == summarise("base", policy_BS[:, :2], reference_BS[:, :2], [["a", "b"]])


def test_each_token_of_a_row_has_the_kind_of_its_piece(run_dir, tmp_path):
    pieces = [["Q: Ben has", "question: words"], [" 18", "question: numbers"], ["=", "solution: signs"], ["27", SLIP]]
    pieces += [["<eos>", END], ["18+9=", "equations"], ["27", RESULT], ["<eos>", END], ["<pad><pad>", PAD]]
    (tmp_path / "pieces.jsonl").write_text(f"{json.dumps(pieces)}\n" * 5)
    rows, kinds, _ = read_rows(tmp_path / "pieces.jsonl", run_dir / "hf/base", 4)
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "hf/base")
    assert len(rows) == len(kinds) == 4
    (found,) = {
        tuple((tokenizer.decode([token]).strip(), kind) for token, kind in zip(row, of_row, strict=True))
        for row, of_row in zip(rows, kinds, strict=True)
    }
    assert [kind for text, kind in found if text in ("2", "7")] == [SLIP, SLIP, RESULT, RESULT]
    assert ("1", "question: numbers") in found and [kind for text, kind in found if text == "<eos>"] == [END, END]
    assert found[-2:] == (("<pad>", PAD), ("<pad>", PAD))
