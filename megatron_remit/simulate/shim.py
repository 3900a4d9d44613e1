"""The stand-in for the CUDA driver and runtime: three small C files, compiled once with the machine's C compiler."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from megatron_remit.errors import UserError

_SOURCES = {"libcuda.so.1": "cuda.c", "cudart.so": "cudart.c", "libnvidia-ml.so.1": "nvml.c"}


def environment() -> dict[str, str]:
    """The variables with which a new process sees one CUDA device that computes nothing.

    Raises:
        UserError: no C compiler, no CUDA headers, or sources that do not compile.
    """
    folder = _built()
    libraries = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        "LD_LIBRARY_PATH": ":".join(libraries),
        "LD_PRELOAD": str(folder / "cudart.so"),
        "CUDA_VISIBLE_DEVICES": "0",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


def _built() -> Path:
    """The folder of the libraries, named after their sources; a rename makes it appear whole."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / source).read_bytes() for source in _SOURCES.values())).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron-remit"
    folder = cache / f"cuda-{digest}"
    if folder.is_dir():
        return folder
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UserError("the simulation needs a C compiler, and there is no cc, gcc or clang on the PATH; install one")
    headers = _headers()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        for library, source in _SOURCES.items():
            command = [compiler, "-shared", "-fPIC", "-O1", f"-I{headers}", "-o", f"{temporary}/{library}"]
            result = subprocess.run([*command, str(here / source), "-ldl"], capture_output=True, text=True)
            if result.returncode:
                raise UserError(f"{compiler} does not compile {here / source}: {result.stderr.strip()[:300]}")
        made = Path(tempfile.mkdtemp(dir=cache)) / "whole"
        shutil.copytree(temporary, made)
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was faster otherwise
            raise
    shutil.rmtree(made.parent)
    return folder


def _headers() -> Path:
    """CUDA's headers: Triton brings them along."""
    found = importlib.util.find_spec("triton")
    if found is not None and found.origin is not None:
        folder = Path(found.origin).parent / "backends/nvidia/include"
        if (folder / "cuda_runtime_api.h").is_file():
            return folder
    raise UserError("the simulation needs CUDA's headers, which come with Triton; install triton")
