"""The page of a comparison stands with all of its own figures, or not at all, whenever the program is killed. An older
comparison is lost only when the new one stands."""

import os

import pytest

from megatron_remit.analysis.build import PAGE, _write
from megatron_remit.artifacts import bring_back

OLD = {name: b"old" for name in ("logp.png", "logp.csv", "kl.csv", PAGE)}
NEW = {name: b"new" for name in ("logp.png", "logp.csv", "heatmap.png", PAGE)}


def _killed_after(calls, out):
    """Write NEW over OLD and end after so many changes of the folder, without any clean-up; whether it was ended."""
    count = 0

    def counted(original):
        def call(*arguments, **named):
            nonlocal count
            if count == calls:
                os._exit(9)
            count += 1
            return original(*arguments, **named)

        return call

    child = os.fork()
    if child == 0:
        for owner, name in ((os, "replace"), (os, "rename"), (type(out), "unlink"), (type(out), "write_bytes")):
            setattr(owner, name, counted(getattr(owner, name)))
        try:
            _write(out, NEW)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def _check_page(found, before):
    if PAGE in found:
        of_the_page = NEW if found[PAGE] == b"new" else before
        assert {name: found[name] for name in of_the_page} == of_the_page


@pytest.mark.parametrize("before", [OLD, {}], ids=["over an older one", "anew"])
def test_no_kill_leaves_a_page_beside_figures_of_another(tmp_path, before):
    calls, killed = 0, True
    while killed:
        out = tmp_path / str(calls)
        out.mkdir()
        for name, content in before.items():
            (out / name).write_bytes(content)
        killed = _killed_after(calls, out)
        found = {path.name: path.read_bytes() for path in out.iterdir()}
        _check_page(found, before)
        bring_back(out / PAGE)
        found = {path.name: path.read_bytes() for path in out.iterdir()}
        assert (PAGE in found) or not before
        _check_page(found, before)
        assert not [name for name in found if ".old-" in name]
        _write(out, NEW)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before | NEW
        calls += 1
    assert calls > 8
