"""Where the ranks of a node keep what Triton and Inductor compile: on the node's own disk, shared by its ranks.

Triton's default is the home folder, which on a cluster is one network file system for all ranks of all nodes.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""The variables that Triton and torch read, each with its folder."""


def compile_caches(environment: Mapping[str, str], temporary: Path | None = None) -> dict[str, str]:
    """The variables of ``CACHES`` that ``environment`` leaves open, with folders that exist and only this user enters.

    The folder is the same for every job of this user on the node, so that a job that starts again, or the next one,
    compiles nothing. ``temporary``: the node's folder for such files, by default that of ``TMPDIR``, or /tmp.
    """
    unset = {variable: name for variable, name in CACHES.items() if not environment.get(variable)}
    if not unset:
        return {}
    root = (temporary or Path(tempfile.gettempdir())) / f"megatron-remit-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        # Another user's: what lies there is code that would be run.
        root = Path(tempfile.mkdtemp(prefix="megatron-remit-", dir=temporary))
    for name in unset.values():
        (root / name).mkdir(exist_ok=True)
    return {variable: str(root / name) for variable, name in unset.items()}
