"""Stores without a model: rows whose NLLs follow from their key, so that a test notices a wrong row."""

import hashlib

import numpy

from megatron_remit.score_store.manifest import Identity, Manifest, create_manifest
from megatron_remit.score_store.reader import ScoreStore
from megatron_remit.score_store.writer import StoreWriter

LENGTH = 40
IDENTITY = Identity(
    reference="a" * 64,
    tokenizer="b" * 64,
    vocabulary=515,
    sequence_length=LENGTH,
    reset_attention_mask=False,
    reset_position_ids=False,
    compute_dtype="float32",
    dtype="float16",
)
JOB = {"micro_batch_size": 1}


def key(number):
    digest = hashlib.blake2b(str(number).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def nll(number):
    return numpy.random.default_rng(number).exponential(3.0, LENGTH).astype(numpy.float32)


def make_store(folder, identity=IDENTITY):
    create_manifest(folder, Manifest(identity, JOB))
    return folder


def write(folder, numbers, close=True):
    """One writer adds the rows ``numbers`` as one shard."""
    writer = StoreWriter(folder, JOB)
    for number in numbers:
        writer.add(key(number), nll(number))
    writer.close() if close else writer.flush()


def assert_rows(folder, numbers):
    """Every row is there with its own values."""
    store = ScoreStore(folder)
    for number in numbers:
        expected = nll(number).astype(numpy.float16)
        numpy.testing.assert_array_equal(store.read(key(number)), expected, err_msg=str(number))
    store.close()
