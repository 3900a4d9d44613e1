"""A real model through the whole path: SmolLM2-135M-Instruct gives a text the same mean NLL at every station.

The policy and the reference are the same model, so the gap between the two is exactly 0 at any layout. Its nine heads
and three key/value groups divide over three tensor-parallel ranks, and over no others.
"""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.ranks import ROOT, pretrain, run_command
from tests.score_store.programs import rows_of, score

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEXT = (ROOT / "LICENSE").read_text()[600:2000]
# What transformers 5.23 gives TEXT in fp32, nats per token. An update that moves it has changed the model.
EXPECTED = 3.09687
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def command(*words):
    done = run_command(["python", *words])
    assert done.returncode == 0, done.output
    return done


@pytest.fixture(scope="module")
def folder(smollm2):
    """The folder of the model, imported there, and the text as a corpus of one row."""
    folder = smollm2.parent
    (folder / "text.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    command(ROOT / "tools/import_hf.py", "--hf", folder / "hf", "--out", folder / "model")
    command(
        *(ROOT / "tools/preprocess_corpus.py", "--input", folder / "text.jsonl", "--output-prefix", folder / "corpus"),
        *("--tokenizer-model", folder / "hf"),
    )
    return folder


def flags(folder, **changes):
    """One step with a learning rate of 0 over the corpus as a single row, which leaves the weights as they are."""
    tokens = json.loads((folder / "corpus.json").read_text())["tokens"]
    values = {
        "load": folder / "model",
        "reference_load": folder / "model",
        "objective": "remit",
        "tokenizer_model": folder / "model" / "hf",
        "tokenizer_type": "HuggingFaceTokenizer",
        "data_path": folder / "corpus",
        "split": "100,0,0",
        "seq_length": tokens - 1,
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "train_iters": 1,
        "lr": 0.0,
        "eval_iters": 0,
        "log_interval": 1,
    } | changes
    listed = [word for name, value in values.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return ["--use-checkpoint-args", "--finetune", "--no-save-optim", *listed]


def nll_by_transformers(folder):
    """Mean NLL of the corpus' row and the greedy answer to QUESTION, by transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        nll = model(ids, labels=ids).loss.item()
        prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
        answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    return nll, tokenizer.decode(answer[0, prompt["input_ids"].size(1) :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def original(folder):
    return nll_by_transformers(folder / "hf")


def assert_scored_as_by_transformers(run, original):
    assert run.series("lm loss") == pytest.approx([original[0]], abs=2e-5)
    assert run.series("reference nll") == run.series("lm loss")
    assert run.series("weight mean") == [1.0] and run.series("weight std") == [0.0]


def test_transformers_scores_the_text_and_answers(original):
    assert original[0] == pytest.approx(EXPECTED, abs=1e-4)
    assert original[1] == "The capital of France is Paris."


def test_one_rank_scores_the_text_as_transformers_does(folder, original):
    assert_scored_as_by_transformers(pretrain(1, *flags(folder)), original)


def test_three_tensor_parallel_ranks_do(folder, original):
    assert_scored_as_by_transformers(pretrain(3, *flags(folder, tensor_model_parallel_size=3)), original)


def test_the_score_store_does(folder, original):
    score(1, folder / "store", *flags(folder))
    (row,) = rows_of(folder / "store").values()
    # A store holds the NLLs in fp16: half a unit of the 11th bit per token, and less in the mean.
    assert row.mean() == pytest.approx(original[0], abs=2e-4)


def test_two_stages_do_and_the_export_of_their_checkpoint_is_the_model_bit_for_bit(folder, original):
    trained = folder / "trained"
    run = pretrain(2, *flags(folder, pipeline_model_parallel_size=2, save=trained, save_interval=1))
    assert_scored_as_by_transformers(run, original)
    template = folder / "model" / "hf"
    command(ROOT / "tools/export_hf.py", "--megatron", trained, "--hf-template", template, "--out", folder / "home")
    assert nll_by_transformers(folder / "home") == original
    shutil.rmtree(trained)
