"""The tool on a megabyte of real text: Python's own library."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron_remit.analysis.heatmap import SHOWN_TEXTS, SHOWN_TOKENS
from tests.analysis.inputs import rows
from tests.hf_models import make_olmo2
from tests.ranks import run_command

# VmHWM is this program's own peak; what getrusage says of a child includes its parent's size before exec.
PEAK = (
    "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__'); "
    "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
)


def python_sources():
    """Whole ASCII modules (so that every token is a slice of the text) until they are 1 MB."""
    texts, size = [], 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        content = path.read_bytes()
        if content and content.isascii() and size < 1_000_000:
            texts.append(content.decode())
            size += len(content)
    assert size >= 1_000_000
    return texts


@pytest.mark.slow
def test_a_megabyte_of_real_text_is_read_to_its_end_in_bounded_memory(tmp_path):
    texts = python_sources()
    (tmp_path / "sources.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, seed in (("a", 1), ("b", 2)):
        make_olmo2(tmp_path / name, seed=seed, hidden_size=16, num_hidden_layers=1, max_position_embeddings=256)
    out = tmp_path / "out"
    run = run_command(
        [
            "python",
            "-c",
            PEAK,
            "tools/compare_models.py",
            "--out",
            out,
            "--text",
            tmp_path / "sources.jsonl",
            "--model",
            f"a={tmp_path / 'a'}",
            "--model",
            f"b={tmp_path / 'b'}",
            "--teacher",
            "a",
            "--heatmap",
            "b:a",
            "--seq-length",
            256,
            "--max-tokens",
            10_000_000,
        ]
    )
    assert run.returncode == 0, run.failure()

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    encoded = tokenizer(texts, return_offsets_mapping=True)
    pieces = [[text[a:b] for a, b in offsets] for text, offsets in zip(texts, encoded["offset_mapping"], strict=True)]
    count = sum(map(len, pieces))
    assert f"{count:,} tokens of {len(texts):,} texts" in (out / "compare.html").read_text()
    times = Counter(piece.strip(" ") or piece for text in pieces for piece in text)
    table = {row[0]: int(row[1]) for row in rows(out / "tokens-heatmap-b-a.csv")[1:]}
    assert table == {token: n for token, n in times.items() if n >= 10}
    shown = rows(out / "heatmap-b-a.csv")[1:]
    assert [row[2] for row in shown] == [piece for text in pieces[:SHOWN_TEXTS] for piece in text[:SHOWN_TOKENS]]

    peak = int(re.search(r"VmHWM:\s+(\d+) kB", run.output)[1]) / 1e3
    # Imports take 0.8 GB, a batch 0.2 GB, a token about 100 bytes. The logits of the whole text would take 1.8 GB.
    assert peak < 1300 < 515 * 4 * count / 1e6, f"peak of {peak:.0f} MB"
