"""A real model in the evaluation: its scores are those that transformers' own log-probabilities give."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_remit.evaluation.run import Request, evaluate

pytestmark = pytest.mark.slow

QUESTIONS = [
    ("Which of these is hot?", ["ice", "the sun", "snow"], 1),
    ("What do cows drink when they are thirsty?", ["milk", "petrol", "water"], 2),
    ("How many legs does a dog have?", ["four", "six", "none"], 0),
    ("In which season does it snow in Canada?", ["summer", "winter", "at noon"], 1),
    ("Which animal can fly?", ["an eagle", "a horse", "a shark"], 0),
    ("What is the largest planet of the solar system?", ["Mars", "the moon", "Jupiter"], 2),
    ("Which gas do plants take from the air?", ["helium", "neon", "carbon dioxide"], 2),
    ("What is made of wood?", ["a glass", "a table", "a cloud"], 1),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "arc_challenge").mkdir()
    rows = [
        {"question": question, "choices": {"text": choices, "label": list("ABC")}, "answerKey": "ABC"[right]}
        for question, choices, right in QUESTIONS
    ]
    for split in ("train", "validation", "test"):
        (folder / "arc_challenge" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "gsm8k_cot_zeroshot").mkdir()
    problem = {"question": "Tom has 2 apples and buys 3 more. How many apples has he?", "answer": "#### 5"}
    for split in ("train", "test"):
        (folder / "gsm8k_cot_zeroshot" / f"{split}.jsonl").write_text(2 * (json.dumps(problem) + "\n"))
    return folder


def log_probability(model, tokenizer, context, answer):
    """Sum over the tokens of ``answer`` after ``context``."""
    start = len(tokenizer(context)["input_ids"])
    ids = torch.tensor([tokenizer(context + answer)["input_ids"]])
    with torch.no_grad():
        log_probabilities = model(ids).logits.log_softmax(-1)
    return log_probabilities[0, start - 1 : -1].gather(-1, ids[0, start:, None]).sum().item()


def test_multiple_choice_is_decided_by_transformers_log_probabilities(smollm2, data, tmp_path):
    text = evaluate(
        Request(
            out=tmp_path,
            model=[f"SmolLM2={smollm2}"],
            suite="zero-shot",
            columns=["ARC-C"],
            chat_template=False,
            local_data=data,
            device="cpu",
            paper="none",
        )
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    right = 0
    for question, choices, answer in QUESTIONS:
        context = f"Question: {question}\nAnswer:"
        scores = [log_probability(model, tokenizer, context, f" {choice}") / len(choice) for choice in choices]
        right += scores.index(max(scores)) == answer
    result = json.loads((tmp_path / "SmolLM2/zero-shot/ARC-C.json").read_text())
    assert result["score"] == pytest.approx(100 * right / len(QUESTIONS))
    assert right > len(QUESTIONS) / 3  # it knows more than chance
    assert f"{result['score']:.2f} ±" in text


def test_the_chat_template_reaches_the_model(smollm2, data, tmp_path):
    """An instruct model answers a sum through its template; the last number of the answer counts."""
    request = Request(
        out=tmp_path,
        model=[f"SmolLM2={smollm2}"],
        suite="zero-shot",
        columns=["GSM8K"],
        local_data=data,
        device="cpu",
        max_gen_toks=60,
    )
    evaluate(request)
    result = json.loads((tmp_path / "SmolLM2/zero-shot/GSM8K.json").read_text())
    assert result["settings"]["chat_template"] is True
    assert result["score"] == 100
