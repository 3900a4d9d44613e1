"""The measures against the same figures taken one problem at a time."""

import math
import random

import pytest
import torch
from make_world import answer_of, train_tokenizer
from measure import Measured, by_task, divergence, greedy_right, measure, slip_probabilities, solution_nll
from transformers import Olmo2Config, Olmo2ForCausalLM, set_seed
from world.corpus import held_out

from tests.ranks import run_command


@pytest.fixture(scope="module")
def rows():
    return [one.row() for problems in held_out(random.Random(1), 5, 2).values() for one in problems]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, rows):
    """Two random models of one tokenizer."""
    folder = tmp_path_factory.mktemp("measured")
    tokenizer = train_tokenizer([row["text"] for row in rows], folder / "tokenizer")
    for seed, name in ((1, "one"), (2, "other")):
        set_seed(seed)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "initializer_range": 0.2}
        config = Olmo2Config(**sizes, **ids)
        Olmo2ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "one", folder / "other"


@pytest.fixture(scope="module")
def one(folders):
    return Measured(folders[0])


def log_probabilities(measured, prompt, ending):
    head = [measured.tokenizer.eos_token_id, *measured.ids(prompt)]
    with torch.no_grad():
        logits_TV = measured.model(torch.tensor([head + ending])).logits[0].double()
    return logits_TV[len(head) - 1 : -1].log_softmax(-1)


def test_the_nll_of_a_solution_is_the_sum_over_its_tokens_and_the_end(one, rows):
    for row, found in zip(rows, solution_nll(one, rows), strict=True):
        ending = [*one.ids(row["completion"]), one.tokenizer.eos_token_id]
        log_p = log_probabilities(one, row["prompt"], ending)
        assert found == pytest.approx(-sum(log_p[at, token].item() for at, token in enumerate(ending)), rel=1e-5)


def test_the_divergence_is_the_mean_over_all_tokens_of_the_solutions(one, folders, rows):
    other = Measured(folders[1])
    total, tokens = 0.0, 0
    for row in rows:
        ending = [*one.ids(row["completion"]), one.tokenizer.eos_token_id]
        own, wanted = (log_probabilities(model, row["prompt"], ending) for model in (one, other))
        total += (wanted.exp() * (wanted - own)).sum().item()
        tokens += len(ending)
    assert divergence(one, other, rows) == pytest.approx(total / tokens, rel=1e-5)
    assert divergence(one, one, rows) == pytest.approx(0, abs=1e-6)


def test_slips_are_the_results_that_are_off_by_1_2_or_10(one):
    row = {"prompt": "Q: Ben has 4 pens. Ben finds 9. How many pens?\nA:", "completion": " 4+9=13 #### 13", "task": "x"}
    chance = {}
    for value in (13, 3, 11, 12, 14, 15, 23):
        ending = one.ids(f"{value};")
        log_p = log_probabilities(one, row["prompt"] + " 4+9=", ending)
        chance[value] = math.exp(sum(log_p[at, token].item() for at, token in enumerate(ending)))
    found = slip_probabilities(one, [row])
    assert found["p_true"] == pytest.approx(chance.pop(13), rel=1e-4)
    assert found["p_slip"] == pytest.approx(sum(chance.values()), rel=1e-4)


def test_greedy_answers_are_those_of_one_problem_at_a_time(one, rows):
    rows = rows[:8]
    expected = []
    for row in rows:
        ids = torch.tensor([[one.tokenizer.eos_token_id, *one.ids(row["prompt"])]])
        out = one.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
        told = answer_of(one.tokenizer.decode(out[0, ids.size(1) :], skip_special_tokens=True))
        expected.append(int(told == row["answer"]))
    assert greedy_right(one, rows) == expected
    # A model that answers is counted: every problem now asks for what this one says.
    own = [row | {"answer": answer_of(" #### 7")} for row in rows]
    assert sum(greedy_right(one, own)) <= len(own)


def test_figures_are_grouped_by_task_in_the_order_of_the_file(rows):
    found = by_task(rows, [float(at) for at in range(len(rows))])
    assert list(found) == list(dict.fromkeys(row["task"] for row in rows))
    assert found["two_step"] == [0, 1, 2, 3, 4] and found["three_step"][0] == 5


def test_only_the_whole_measure_generates(folders, rows):
    assert set(measure(folders[0], rows, whole=False)) == {"nll"}
    whole = measure(folders[0], rows, reference=Measured(folders[1]))
    assert set(whole) == {"nll", "right", "p_true", "p_slip", "kl_reference"}


def test_a_folder_without_a_model_leaves_no_figures(tmp_path):
    (tmp_path / "heldout.jsonl").write_text("")
    flags = [f"--hf={tmp_path}/nothing", f"--data={tmp_path}/heldout.jsonl", f"--out={tmp_path}/eval/x.json"]
    assert run_command(["python", "examples/flywheel/measure.py", *flags]).returncode != 0
    assert not (tmp_path / "eval/x.json").exists()
