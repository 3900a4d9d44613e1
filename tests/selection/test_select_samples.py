"""Difference sampling over a corpus whose right answer is known: by the stores each token has a known difference."""

import argparse
import json
import os
import shutil
import signal
from pathlib import Path

import numpy
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_remit import cpu
from megatron_remit.errors import UserError
from megatron_remit.programs import select_samples as command
from megatron_remit.score_store.reader import ScoreStore
from tests.ranks import ROOT, run_command

cpu.install()


def gain(tokens):
    # Megatron's GPT dataset reads the tokenizer's padding token (1) as token 0, also where a corpus holds it.
    tokens = numpy.where(tokens == 1, 0, tokens.astype(int))
    return (tokens % 7 - 3) / 4


@pytest.fixture(scope="module")
def flags(material):
    return [
        *material.flags(
            load=None,
            finetune=None,
            use_checkpoint_args=None,
            num_layers=1,
            hidden_size=8,
            num_attention_heads=1,
            max_position_embeddings=64,
            row_seed=5,
        )
    ]


@pytest.fixture(scope="module")
def folder(flags, tmp_path_factory):
    return make_stores(tmp_path_factory.mktemp("select"), flags)


def make_stores(folder, flags):
    done = run_command(["python", "-m", "tests.selection.make_stores", folder, *flags])
    assert done.returncode == 0, done.failure()
    return folder


@pytest.fixture(scope="module")
def truth(material):
    """Each document's tokens, and the sum of their differences."""
    corpus = IndexedDataset(str(material.corpus), mmap=True)
    rows = [corpus[number].copy() for number in range(len(corpus))]  # the mapped file closes with the corpus
    return rows, numpy.array([gain(row).sum() for row in rows])


TOOL = str(ROOT / "tools/select_samples.py")
# The tool, killed as it is about to give the .idx its name.
KILLED = [
    "-c",
    f"""
import os, runpy, sys
def kill(event, args):
    if event == "os.rename" and str(args[1]).endswith("kept.idx"):
        os.kill(os.getpid(), 9)
sys.addaudithook(kill)
runpy.run_path({TOOL!r}, run_name="__main__")
""",
]


def select(flags, folder, *more, program=(TOOL,)):
    return run_command(
        ["python", *program, *flags, "--store-large", folder / "large", "--store-small", folder / "small", *more]
    )


@pytest.mark.slow
def test_the_documents_with_the_largest_sums_are_kept(flags, folder, truth):
    done = select(flags, folder, "--out", folder / "kept")
    assert done.returncode == 0, done.failure()
    rows, sums = truth
    scores = numpy.load(folder / "kept.scores.npy")
    known = ~numpy.isnan(scores)
    # The stream's first token has no prediction, and its last tokens fill no row.
    assert 0 < (~known).sum() < 10
    assert (numpy.abs(scores - sums)[known] > 1e-9).sum() <= 1
    manifest = json.loads((folder / "kept.json").read_text())
    keep = round(0.8 * known.sum())
    best = sorted(numpy.flatnonzero(known), key=lambda number: (-scores[number], number))[:keep]
    expected = sorted([*best, *numpy.flatnonzero(~known)])
    written = IndexedDataset(str(folder / "kept"), mmap=True)
    assert len(written) == len(expected) == len(written.document_indices) - 1
    for place, number in enumerate(expected):
        assert numpy.array_equal(written[place], rows[number])
    assert manifest["kept"]["documents"] == keep and manifest["dropped"]["documents"] == known.sum() - keep
    assert manifest["kept"]["tokens"] == sum(len(rows[number]) for number in best)
    assert manifest["kept"]["mean score"] == pytest.approx(scores[best].mean())
    assert manifest["kept"]["mean score"] > manifest["dropped"]["mean score"]
    assert manifest["kept without a score"]["documents"] == (~known).sum()
    assert scores[best].min() == manifest["threshold"]

    # A second call refuses to write over it.
    again = select(flags, folder, "--out", folder / "kept")
    assert again.returncode == 2 and "kept.json exists" in again.output


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_manifest_is_finished_by_the_next(flags, folder, tmp_path):
    (tmp_path / "kept.bin").write_bytes(b"somebody's")
    refused = select(flags, folder, "--out", tmp_path / "kept")
    assert refused.returncode == 2 and "kept.bin exists" in refused.output
    (tmp_path / "kept.bin").unlink()
    (tmp_path / "kept.json.tmp").symlink_to("/dev/full")
    full = select(flags, folder, "--out", tmp_path / "kept")
    assert full.returncode == 2 and "cannot be written" in full.output and "No space left" in full.output
    assert not (tmp_path / "kept.json").exists()
    (tmp_path / "kept.json.tmp").unlink()
    whole = select(flags, folder, "--out", tmp_path / "kept")
    assert whole.returncode == 0, whole.failure()
    expected = {name: (tmp_path / name).read_bytes() for name in ("kept.bin", "kept.idx", "kept.json")}
    for name in expected:
        (tmp_path / name).unlink()
    killed = select(flags, folder, "--out", tmp_path / "kept", program=KILLED)
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in expected if (tmp_path / name).exists()] == ["kept.bin"]
    again = select(flags, folder, "--out", tmp_path / "kept")
    assert again.returncode == 0, again.failure()
    assert {name: (tmp_path / name).read_bytes() for name in expected} == expected


@pytest.mark.slow
def test_documents_read_alone_and_ranked_by_the_score_per_token(flags, folder, truth, tmp_path):
    """With document masks the rows have other keys, so only stores that were written with masks serve."""
    masked = [*flags, "--reset-attention-mask", "--reset-position-ids"]
    refused = select(masked, folder, "--out", tmp_path / "refused")
    assert refused.returncode == 2 and "--reset-attention-mask" in refused.output
    make_stores(tmp_path, masked)
    done = select(masked, tmp_path, "--out", tmp_path / "kept", "--keep-ratio", 0.5, "--per-token")
    assert done.returncode == 0, done.failure()
    rows, sums = truth
    scores = numpy.load(tmp_path / "kept.scores.npy")
    known = ~numpy.isnan(scores)
    assert (numpy.abs(scores - sums)[known] > 1e-9).sum() <= 1
    mean = scores / [len(row) for row in rows]
    order = sorted(numpy.flatnonzero(known), key=lambda number: (-mean[number], number))
    keep = round(0.5 * known.sum())
    expected = sorted([*order[:keep], *numpy.flatnonzero(~known)])
    written = IndexedDataset(str(tmp_path / "kept"), mmap=True)
    assert [list(written[place]) for place in range(len(written))] == [list(rows[number]) for number in expected]
    # The sum would have chosen others.
    assert set(order[:keep]) != set(sorted(numpy.flatnonzero(known), key=lambda number: -scores[number])[:keep])
    assert json.loads((tmp_path / "kept.json").read_text())["ranked by"] == "score / tokens"


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_its_last_note_is(folder, truth):
    found = numpy.load(folder / "interrupted.npz")
    first, second, rows = found["reads"]
    assert first == 21 and second == rows - 16, "notes are taken every 8 rows here"
    known = ~numpy.isnan(found["scores"])
    assert (numpy.abs(found["scores"] - truth[1])[known] > 1e-9).sum() <= 1


@pytest.mark.slow
def test_a_store_without_a_row_is_named(flags, folder, tmp_path):
    shutil.copytree(folder / "large", tmp_path / "large")
    (tmp_path / "small").mkdir()
    shutil.copy(folder / "small" / "manifest.json", tmp_path / "small")
    done = select(flags, tmp_path, "--out", tmp_path / "kept")
    assert done.returncode == 2
    assert f"error: {tmp_path / 'small'}: row 0 of the corpus is not in it" in done.output
    assert not (tmp_path / "kept.bin").exists()


def options(tmp_path, **overrides):
    return argparse.Namespace(
        **{
            "keep_ratio": 0.8,
            "row_seed": 5,
            "out": tmp_path / "kept",
            "seq_length": 24,
            "reset_attention_mask": False,
            "reset_position_ids": False,
            "dataloader_inter_document_masking": False,
            "remit_vocab_size": 515,
            "remit_tokenizer_fingerprint": None,
            "data_path": ["corpus"],
        }
        | overrides
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"keep_ratio": 0.0}, r"--keep-ratio 0.0: .* \(0, 1\]"),
        ({"keep_ratio": 1.1}, r"--keep-ratio 1.1"),
        ({"row_seed": None}, "--row-seed is not set"),
        ({"data_path": None}, "--data-path is not set"),
        ({"data_path": ["1", "a", "2", "b"]}, "--data-path is 1 a 2 b: .* one corpus"),
        ({"out": Path(".")}, r"--out \.: is a folder"),
    ],
)
def test_flags_that_cannot_work(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message):
        command._check(options(tmp_path, **overrides))


def test_an_output_without_its_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        command._check(options(tmp_path, out=tmp_path / "nowhere" / "kept"))


@pytest.mark.slow
def test_stores_of_one_model_or_of_another_corpus(folder, tmp_path):
    large, small = ScoreStore(folder / "large"), ScoreStore(folder / "small")
    fingerprint = large.manifest.identity.tokenizer
    args = options(tmp_path, remit_tokenizer_fingerprint=fingerprint)
    command._check_stores(args, large, small)
    with pytest.raises(UserError, match="of one model"):
        command._check_stores(args, large, large)
    for change, message in (
        ({"seq_length": 25}, "another sequence length"),
        ({"remit_vocab_size": 9}, "vocabulary"),
        ({"remit_tokenizer_fingerprint": "0" * 64}, "another tokenizer"),
    ):
        with pytest.raises(UserError, match=f"--store-large .*{message}"):
            command._check_stores(argparse.Namespace(**vars(args) | change), large, small)


def test_a_corpus_that_was_written_anew_is_another_selection(folder, tmp_path):
    for suffix in (".bin", ".idx"):
        (tmp_path / f"corpus{suffix}").write_bytes(b"as long")
    args = options(tmp_path, data_path=[str(tmp_path / "corpus")])
    stores = ScoreStore(folder / "large"), ScoreStore(folder / "small")
    job = command._job(args, *stores)
    assert command._job(args, *stores) == job
    changed = tmp_path / "corpus.bin"
    changed.write_bytes(b"so long")
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    assert command._job(args, *stores) != job
