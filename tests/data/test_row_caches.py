"""A run that is killed while Megatron writes the order of its rows leaves half a file: the next run makes it anew."""

import os
import pickle
import threading
import time

import numpy
import pytest

from megatron_remit.data.row_caches import remove_damaged
from tests.conftest import VOCABULARY, write_corpus
from tests.ranks import pretrain
from tests.trust.attack import MakesFile


@pytest.mark.parametrize("blend", [False, True])
def test_half_written_rows_are_made_anew(material, tmp_path, blend):
    """Without a blend the files lie below the corpus; those of a blend need ``--data-cache-path``."""
    for name in ("one", "two"):
        write_corpus(tmp_path / name, VOCABULARY)
    flags = material.flags(data_path=tmp_path / "one")
    if blend:
        flags = [*material.flags(data_path=None), *map(str, ["--data-path", 1, tmp_path / "one", 1, tmp_path / "two"])]
        flags += ["--data-cache-path", str(tmp_path / "cache")]
    whole = pretrain(1, *flags)
    files = sorted(tmp_path.rglob("*_index.npy"))
    assert len(files) == (8 if blend else 3)
    contents = [path.read_bytes() for path in files]
    files[0].write_bytes(b"")
    files[1].write_bytes(contents[1][: len(contents[1]) - 4])
    files[2].write_bytes(pickle.dumps(MakesFile(tmp_path / "made")))
    for path in files[:3]:
        os.utime(path, (0, 0))
    again = pretrain(2, *flags)
    assert again.series("lm loss") == pytest.approx(whole.series("lm loss"), abs=1e-5)  # the ranks add in another order
    assert [path.read_bytes() for path in files] == contents
    notes = [line for line in again.output.splitlines() if line.startswith("note: ") and "made anew" in line]
    assert [line.split(":")[1].strip() for line in notes] == list(map(str, files[:3]))
    assert not (tmp_path / "made").exists()


def test_a_file_that_another_run_is_writing_is_waited_for(tmp_path, capsys):
    path = tmp_path / f"{'0' * 32}-GPTDataset-train-document_index.npy"
    numpy.save(path, numpy.arange(1000))
    content = path.read_bytes()
    path.write_bytes(content[:500])

    def writes_on():
        time.sleep(1)
        with path.open("ab") as file:
            file.write(content[500:])

    writer = threading.Thread(target=writes_on)
    writer.start()
    remove_damaged([tmp_path])
    writer.join()
    assert path.read_bytes() == content and capsys.readouterr().err == ""
