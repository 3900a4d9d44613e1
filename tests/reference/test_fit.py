"""Which tokenizers and embeddings a reference may have: the plan and the training program say the same."""

import argparse
import json
import os
import shutil

import numpy
import pytest
import torch

from megatron_remit import cpu, patches
from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.data.occurring_ids import count_ids
from megatron_remit.data.tokenizer import folder_fingerprint
from megatron_remit.errors import UserError
from megatron_remit.launch.plan import plan_run
from megatron_remit.reference import checkpoint
from megatron_remit.reference.checkpoint import reference_arguments
from tests.conftest import write_documents
from tests.hf_models import make_olmo2
from tests.reference import tokenizer_pairs as pairs
from tests.test_bad_input import parsed

cpu.install()
patches.apply()

FIRST, ROWS = pairs.FIRST, pairs.TOKENS
RENAMED, LAST = FIRST + 1, ROWS - 1
ALLOW = "--allow-reference-special-tokens"
# What became of the base's tokenizer, and the rows of the embedding.
MODELS = {
    "base": (lambda content: None, ROWS),
    "resized": (lambda content: None, 576),
    "renamed": (pairs.renamed, ROWS),
    "appended": (pairs.with_appended, 576),
    "shorter": (pairs.without_the_last, LAST),
    "merges": (pairs.merges_swapped, ROWS),
    "exchanged": (pairs.tokens_exchanged, ROWS),
    "both": (pairs.renamed_and_exchanged, ROWS),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each model, its import as ``mg/NAME``, and corpora by a reserved token that they hold twice (0: none)."""
    folder = tmp_path_factory.mktemp("fit")
    pairs.make_base(folder / "tokenizer")
    for name, (change, rows) in MODELS.items():
        make_olmo2(folder / name, vocab_size=rows, num_hidden_layers=1, tokenizer=False)
        pairs.changed(folder / "tokenizer", folder / name, change)
        import_hf(folder / name, folder / "mg" / name)
    ids = torch.from_numpy(numpy.random.default_rng(0).integers(2, FIRST, 400))
    for token in (0, RENAMED, LAST, ROWS):
        write_documents(folder / f"corpus_{token}", [ids, torch.tensor([token, 5, token])])
    return folder


def run_of(folder, policy, reference, token, *flags):
    prefix = folder / f"corpus_{token}"
    manifest = {"tokenizer_fingerprint": folder_fingerprint(folder / policy), "tokens": 403}
    prefix.with_suffix(".json").write_text(json.dumps(manifest))
    run = ["--objective", "remit", "--seq-length", 32, "--micro-batch-size", 1, "--global-batch-size", 8]
    run += ["--train-iters", 1, "--tokenizer-type", "HuggingFaceTokenizer", "--data-path", prefix]
    run += ["--tokenizer-model", folder / "mg" / policy / "hf", "--reference-load", folder / "mg" / reference, *flags]
    return [str(word) for word in run]


def plan(folder, policy, reference, flags):
    """The notes in the plan."""
    text = plan_run(folder / policy, folder / reference, 1, flags)
    return "".join(line.removeprefix("note    ") + "\n" for line in text.splitlines() if line.startswith("note "))


def train(policy, flags, capsys):
    """What training says before it builds the reference."""
    args = parsed(flags)
    args.remit_vocab_size = MODELS[policy][1]
    args.remit_tokenizer_fingerprint = folder_fingerprint(args.reference_load.parents[1] / policy)
    capsys.readouterr()
    reference_arguments(args)
    said = [line.removeprefix("> ") + "\n" for line in capsys.readouterr().out.splitlines() if line.startswith("> ")]
    return args, "".join(line for line in said if "padded vocab" not in line)


def refusals(folder, capsys, policy, reference, token, *flags):
    """The errors of plan and training, with the models' names instead of their folders."""
    run = run_of(folder, policy, reference, token, *flags)
    found = []
    for judge in (lambda: plan(folder, policy, reference, run), lambda: train(policy, run, capsys)):
        with pytest.raises(UserError) as error:
            judge()
        text = str(error.value).replace(f"{folder}/", "").replace("mg/", "").replace("/hf", "")
        found.append(text.replace("--tokenizer-model ", "").replace("--reference-load ", ""))
    return found


def notes(folder, capsys, policy, reference, token=0, *flags):
    """What both say of a pair that they accept, and over how many rows the reference's NLL is taken."""
    run = run_of(folder, policy, reference, token, *flags)
    planned = plan(folder, policy, reference, run)
    args, said = train(policy, run, capsys)
    assert planned == said
    return said, args.remit_common_vocab_size


def test_nothing_is_said_of_a_reference_with_the_same_rows_and_tokens(folder, capsys):
    assert notes(folder, capsys, "base", "base", LAST) == ("", ROWS)


def test_another_number_of_rows_is_accepted_on_either_side(folder, capsys):
    said, common = notes(folder, capsys, "base", "resized", LAST)
    assert "the reference has 576 embedding rows, the policy 512" in said and common == ROWS
    said, common = notes(folder, capsys, "resized", "base", LAST)
    assert "the reference has 512 embedding rows, the policy 576: " in said and common == ROWS


def test_renamed_reserved_tokens_are_accepted_if_none_occurs(folder, capsys):
    said, common = notes(folder, capsys, "base", "renamed")
    assert (
        f"added tokens, 2 of them (id {RENAMED}: '<|reserved_1|>' in base, '<|im_start|>' in reference); none" in said
    )
    assert common == ROWS


def test_a_renamed_token_that_occurs_is_named_with_its_count_and_the_file(folder, capsys):
    planned, trained = refusals(folder, capsys, "base", "renamed", RENAMED)
    assert planned == trained and planned.startswith(
        f"corpus_{RENAMED}.bin: token id {RENAMED} occurs 2 times, and it is another token for renamed: id {RENAMED}: "
        "'<|reserved_1|>' in base, '<|im_start|>' in reference;"
    )
    said, _ = notes(folder, capsys, "base", "renamed", RENAMED, ALLOW)
    assert f"{ALLOW} accepts them wherever they occur" in said
    # The other reserved tokens have the same name in both.
    notes(folder, capsys, "base", "renamed", LAST)


def test_an_appended_token_with_a_resized_embedding_is_accepted(folder, capsys):
    said, common = notes(folder, capsys, "base", "appended", LAST)
    assert f"id {ROWS}: no token in base, '<|new|>' in reference" in said and common == ROWS


def test_a_token_that_the_reference_lacks_must_not_occur(folder, capsys):
    said, common = notes(folder, capsys, "base", "shorter")
    assert f"id {LAST}: '<|reserved_5|>' in base, no token in reference" in said and common == LAST
    for flags in ((), (ALLOW,)):
        planned, trained = refusals(folder, capsys, "base", "shorter", LAST, *flags)
        assert planned == trained
        assert f"corpus_{LAST}.bin: token id {LAST} occurs 2 times, and shorter has only {LAST} embedding" in planned
    planned, trained = refusals(folder, capsys, "appended", "base", ROWS)
    assert planned == trained and f"token id {ROWS} occurs 2 times, and base has only {ROWS} embedding rows" in planned


@pytest.mark.parametrize(
    ("reference", "first"),
    [
        ("exchanged", r"id 300: '\S+' in base, '\S+' in reference; 2 ids differ, 2 of them in tokens that are not"),
        ("both", r"id 300: '\S+' in base, .* in reference; 4 ids differ, 2 of them in tokens"),
        ("merges", r"merge 3: '\S+ \S+' in base, '\S+ \S+' in reference; 0 ids differ"),
    ],
)
def test_a_difference_in_the_trained_vocabulary_is_refused_in_any_case(reference, first, folder, capsys):
    for flags in ((), (ALLOW,)):
        planned, trained = refusals(folder, capsys, "base", reference, 0, *flags)
        assert planned == trained
        with pytest.raises(UserError, match=rf"{reference}: its tokenizer \(512 .* is not that of base .*: {first}"):
            raise UserError(planned)


def test_a_folder_without_a_tokenizer_is_refused_by_both(folder, tmp_path, capsys):
    copied(folder, tmp_path)
    planned, trained = refusals(tmp_path, capsys, "base", "renamed", 0)
    assert planned.startswith("renamed holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json), so nothing")
    assert trained == f"renamed: {planned}"
    # Token ids without strings are compared with none.
    run = run_of(tmp_path, "base", "renamed", 0)
    run[run.index("HuggingFaceTokenizer")] = "NullTokenizer"
    assert plan(tmp_path, "base", "renamed", run) == ""
    args = parsed(run)
    args.remit_vocab_size = ROWS
    assert reference_arguments(args).remit_vocab_size == ROWS


def copied(folder, target):
    """``target`` with the base, a reference from which the tokenizer's files are gone, and the plain corpus."""
    for name in ("base", "renamed"):
        shutil.copytree(folder / name, target / name)
        shutil.copytree(folder / "mg" / name, target / "mg" / name)
    for path in [*target.glob("renamed/tokenizer*"), *target.glob("mg/renamed/hf/tokenizer*")]:
        path.unlink()
    for suffix in (".bin", ".idx"):
        shutil.copy(folder / f"corpus_0{suffix}", target)


def test_a_checkpoint_that_states_a_fingerprint_alone(folder, tmp_path, capsys, monkeypatch):
    """As a training run leaves it: no tokenizer beside it, but where the run took its own from."""
    copied(folder, tmp_path)
    run = run_of(tmp_path, "base", "renamed", 0)
    saved = vars(checkpoint.saved_arguments(tmp_path / "mg/renamed/release"))

    def judge(**stated):
        monkeypatch.setattr(checkpoint, "saved_arguments", lambda folder: argparse.Namespace(**saved | stated))
        return train("base", run, capsys)[1]

    same, other = folder_fingerprint(folder / "base"), folder_fingerprint(folder / "renamed")
    assert judge(remit_tokenizer_fingerprint=same) == ""
    with pytest.raises(UserError, match=r"only added tokens differ .* in \S*/mg/renamed/hf/tokenizer.json and is not"):
        judge(remit_tokenizer_fingerprint=other)
    with pytest.raises(UserError, match="only added tokens differ"):
        judge(remit_tokenizer_fingerprint=other, tokenizer_model=str(folder / "base"))
    assert "2 of them" in judge(remit_tokenizer_fingerprint=other, tokenizer_model=str(folder / "renamed"))


def test_mock_data_shows_nothing(folder, capsys):
    for flags, message in ((("--mock-data",), "--mock-data is no corpus"), (("--mock-data", ALLOW), None)):
        run = run_of(folder, "base", "renamed", 0, *flags)
        at = run.index("--data-path")
        del run[at : at + 2]
        for judge in (lambda run=run: plan(folder, "base", "renamed", run), lambda run=run: train("base", run, capsys)):
            if message is None:
                judge()
            else:
                with pytest.raises(UserError, match=message):
                    judge()


def test_the_plan_reads_the_corpus_and_the_base_as_training_does(folder):
    """A token id beyond the base's rows; a base whose tokenizer has more tokens than rows, or pads with its end."""
    run = run_of(folder, "base", "base", ROWS)
    with pytest.raises(UserError, match=rf"corpus_{ROWS}.bin: token id {ROWS} is beyond the model's vocabulary of"):
        plan(folder, "base", "base", run)
    config = json.loads((folder / "base/config.json").read_text())
    short = folder / "short"
    shutil.copytree(folder / "base", short)
    (short / "config.json").write_text(json.dumps(config | {"vocab_size": 500}))
    with pytest.raises(
        UserError, match=r"--tokenizer-model \S*/short has 512 tokens, but \S*config.json has 500 embed"
    ):
        plan(folder, "short", "base", run_of(folder, "base", "base", 0))
    tokenizer = json.loads((short / "tokenizer_config.json").read_text())
    (short / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"pad_token": tokenizer["eos_token"]}))
    (short / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"--remit-centering document: .*/short token 0 both ends a document and pads"):
        plan(folder, "short", "base", run_of(folder, "base", "base", 0, "--remit-centering", "document"))


def test_counts_are_kept_beside_the_corpus_until_it_is_written_anew(folder, tmp_path):
    for suffix in (".bin", ".idx"):
        shutil.copy(folder / f"corpus_{LAST}{suffix}", tmp_path / f"c{suffix}")
    prefix, note = str(tmp_path / "c"), tmp_path / "c.ids.json"
    assert count_ids(prefix, [LAST, RENAMED]) == {LAST: 2, RENAMED: 0}
    content = json.loads(note.read_text())
    assert content["counts"] == {str(LAST): 2, str(RENAMED): 0}
    note.write_text(json.dumps(content | {"counts": {str(LAST): 7}}))
    assert count_ids(prefix, [LAST, 5]) == {LAST: 7, 5: 2}, "what is noted is not counted again, the rest is"
    os.utime(prefix + ".bin", ns=(0, 1))
    assert count_ids(prefix, [LAST]) == {LAST: 2}
    note.write_text("{")
    assert count_ids(prefix, [LAST]) == {LAST: 2}
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
