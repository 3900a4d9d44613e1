"""Rows of whole documents, and what a training run reads of them."""

import itertools
import json
import random

import pytest
from make_world import END_TOKEN, PAD_TOKEN, ROW
from transformers import AutoTokenizer
from world.corpus import MID, documents
from world.document import PAD, Document, Piece
from world.rows import whole_rows

from tests.flywheel.test_world import write_data


def words(number):
    return Document((Piece("x " * number, "plain sentences"),))


def test_rows_are_whole_documents_the_longest_that_fits_next():
    found = itertools.chain(map(words, (5, 2, 9, 40, 3)), itertools.cycle([words(9)]))
    rows = whole_rows(found, lambda text: text.count("x"), 10, ".", "_")
    # 5 and its end are 6 of 10; 3 and its end fill the rest; 40 never fits.
    assert next(rows).text == "x x x x x .x x x ."
    assert next(rows).text == "x x ._______" and next(rows).text == "x x x x x x x x x ."
    short = whole_rows(itertools.cycle([words(6)]), lambda text: text.count("x"), 10, ".", "_")
    assert next(short).text == "x x x x x x .___" and next(short).pieces[-1].kind == PAD


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("rows"), 1)


def test_the_rows_of_a_corpus_hold_its_documents_and_little_padding(data):
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    rows = [json.loads(line)["text"] for line in (data / "mid.jsonl").read_text().splitlines()]
    ids = [tokenizer.encode(row, add_special_tokens=False) for row in rows]
    assert {len(row) for row in ids} == {ROW}
    assert sum(row.count(tokenizer.pad_token_id) for row in ids) < 0.05 * ROW * len(rows)
    texts = [text for row in rows for text in row.replace(PAD_TOKEN, "").split(END_TOKEN) if text]
    again = itertools.islice(documents(random.Random("mid 1"), MID, 0.3, set()), len(texts) + 64)
    assert len(set(texts) - {one.text for one in again}) <= 1, "they are those of the generator, but for held-out ones"
