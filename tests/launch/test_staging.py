"""``STAGE``: what a node copies to its own disk, and a run that reads the copies."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from megatron_remit.errors import UserError
from megatron_remit.launch.stage import stage
from megatron_remit.launch.staging import copies, with_copies
from tests.ranks import ROOT, pretrain

WHAT = ("index", "reference", "store")


@pytest.fixture
def files(tmp_path):
    """A reference, a score store, and two corpora, one of them without a manifest."""
    for folder in ("reference/iter_1", "store"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "weights").write_bytes(b"w" * 3000)
    for corpus, suffixes in (("a", (".bin", ".idx", ".json")), ("b", (".bin", ".idx"))):
        for suffix in suffixes:
            (tmp_path / f"{corpus}{suffix}").write_bytes(suffix.encode() * 100)
    return tmp_path


def flags(files):
    blend = ["--data-path", "0.3", f"{files}/a", "0.7", f"{files}/b", "--split", "1,0,0"]
    return [*blend, "--reference-load", f"{files}/reference", "--score-store", f"{files}/store"]


def made(files, what=WHAT):
    return copies(flags(files), files / "local", what)


def test_the_flags_name_the_copies_and_the_cache_is_shared(files):
    found = made(files)
    assert [(copy.kind, copy.source) for copy in found] == [
        ("index", f"{files}/a"),
        ("index", f"{files}/b"),
        ("folder", f"{files}/reference"),
        ("folder", f"{files}/store"),
    ]
    a, b, reference, store = (copy.target for copy in found)
    assert a.startswith(f"{files}/local/a-") and reference.startswith(f"{files}/local/reference-")
    expected = ["--data-path", "0.3", a, "0.7", b, "--split", "1,0,0", "--reference-load", reference]
    cache = ["--data-cache-path", "/run/cache"]
    assert with_copies(flags(files), found, "/run/cache") == [*expected, "--score-store", store, *cache]
    given = ["--data-cache-path", "/mine"]
    assert with_copies([*flags(files), *given], found, "/run/cache")[-2:] == given


@pytest.mark.parametrize(
    ("what", "sources"),
    [(("reference",), ["reference"]), (("store",), ["store"]), (("corpus",), ["a", "b"]), ((), [])],
)
def test_what_is_copied_is_chosen(what, sources, files):
    assert [os.path.basename(copy.source) for copy in made(files, what)] == sources
    assert ("--data-cache-path" in with_copies(flags(files), made(files, what), "/c")) == ("corpus" in what)


def test_an_index_is_copied_with_links_to_the_rest(files):
    stage(files / "local", made(files))
    for copy, suffixes in zip(made(files)[:2], ((".bin", ".idx", ".json"), (".bin", ".idx")), strict=True):
        for suffix in suffixes:
            path = files / f"{copy.target}{suffix}"
            assert path.read_bytes() == suffix.encode() * 100 and path.is_symlink() == (suffix != ".idx")
    assert (files / made(files)[2].target / "iter_1/weights").read_bytes() == b"w" * 3000


def test_with_the_whole_corpus_nothing_is_read_from_the_shared_disk(files):
    (copy, _) = made(files, ("corpus",))
    stage(files / "local", [copy])
    assert all(not (files / f"{copy.target}{suffix}").is_symlink() for suffix in (".bin", ".idx", ".json"))


def test_what_is_there_is_not_copied_again_and_what_was_replaced_is(files):
    stage(files / "local", made(files))
    before = made(files)
    shutil.rmtree(files / "reference")
    (files / "reference").mkdir()
    (files / "reference/weights").write_bytes(b"n" * 3001)
    after = made(files)
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    (files / "a.bin").unlink()  # would be missed if the corpus were copied again
    stage(files / "local", [before[0], after[2]])
    assert (files / after[2].target / "weights").read_bytes() == b"n" * 3001


def test_a_node_without_room_says_so_and_leaves_nothing(files):
    os.truncate(files / "store/weights", 1 << 43)  # a hole: it takes no room here
    with pytest.raises(UserError, match=r"store needs 8796\.1 GB, and 1 GB more shall stay, but .* GB are free"):
        stage(files / "local", made(files, ("store",)))
    assert [path.name for path in (files / "local").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("folder", ["/proc/local", "/dev/null/local"])
def test_a_folder_that_cannot_be_written_is_named_with_the_node(folder, files, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    with pytest.raises(UserError, match=f"STAGE={folder} on n7: no copies .*each node's own disk"):
        stage(files / folder, made(files))


def test_a_source_that_only_the_first_node_sees_is_named(files):
    found = made(files)
    shutil.rmtree(files / "store")
    with pytest.raises(UserError, match="store is not there; is it on a file system that all nodes share"):
        stage(files / "local", found)


def test_a_killed_copy_is_made_anew_and_leaves_nothing(files):
    (files / "reference/large").write_bytes(bytes(1 << 28))
    found = made(files, ("reference",))
    words = [word for copy in found for word in (copy.kind, copy.source, copy.target)]
    command = [sys.executable, "-m", "megatron_remit.launch.stage", str(files / "local"), *words]
    killed = subprocess.Popen(command, cwd=ROOT)
    limit = time.monotonic() + 60
    while not list((files / "local").glob("*.tmp-*")) and time.monotonic() < limit:
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [one.communicate()[0].count("GB of") for one in both]
    assert sorted(told) == [0, 1], "one copies, the other waits"
    assert sorted(path.suffix for path in (files / "local").iterdir()) == ["", ".lock"]
    assert (files / found[0].target / "large").stat().st_size == 1 << 28


def test_a_run_that_reads_copies_is_the_run_that_reads_the_originals(material, tmp_path):
    words = [*map(str, material.remit())]
    plain = pretrain(1, *words)
    found = copies(words, tmp_path / "local", ("corpus", "reference"))
    assert [copy.kind for copy in found] == ["corpus", "folder"]
    stage(tmp_path / "local", found)
    staged = pretrain(1, *with_copies(words, found, tmp_path / "cache"))
    assert list((tmp_path / "cache").rglob("*.npy")), "the order of the rows is where all nodes see it"
    for name in ("lm loss", "remit loss", "reference nll", "grad-norm"):
        assert staged.series(name) == plain.series(name) != []
