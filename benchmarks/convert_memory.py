"""Peak host memory of import and export, with the sizes that it should depend on, and their time.

    python -m benchmarks.convert_memory --layers 24 --hidden 768 --vocabulary 32000

Makes a random bf16 Llama of that shape in a temporary folder, converts it there and back, and prints one line of JSON.
Each repeat is a new process, as a user's conversion is. A peak is the largest resident memory (VmHWM) that Linux saw
during the conversion, minus what was resident at its start: the libraries, warmed up by a conversion of a tiny model.
All sizes are in bytes, times in seconds.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import conditions, percentiles, write_csv
from megatron_remit.convert.hf_io import write_json, write_tensors
from megatron_remit.convert.hf_to_megatron import import_hf
from megatron_remit.convert.llama import FAMILY
from megatron_remit.convert.megatron_to_hf import export_hf
from megatron_remit.convert.rules import in_layer_order

WAYS = ("import", "export")


def write_model(folder: Path, layers: int, hidden: int, vocabulary: int, shard_bytes: int) -> list[int]:
    """Write a random bf16 Llama (heads of 64, one key head per four query heads); its tensors' sizes in bytes."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "tie_word_embeddings": False,
    }
    write_json(folder / "config.json", config)
    dims = FAMILY.dims(config)
    shapes = {}
    for rule, layer in in_layer_order(FAMILY.rules, layers):
        shapes |= rule.hf_shapes(dims, layer or 0)
    write_tensors(folder, ((name, torch.randn(shape).bfloat16()) for name, shape in shapes.items()), shard_bytes)
    return [2 * torch.Size(shape).numel() for shape in shapes.values()]


def peak_of(work: Callable[[], None]) -> tuple[int, float]:
    """Bytes that ``work`` adds to the resident memory at its peak, and its seconds."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that the process holds would hide what it uses again
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = _status("VmHWM")
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return _status("VmHWM") - before, seconds


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024


def peaks(folder: Path, shard_bytes: int) -> list[tuple[int, float]]:
    """Peak in bytes and seconds of importing and of exporting the model in ``folder/hf``."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        write_model(work / "warm", 1, 256, 256, shard_bytes)
        import_hf(work / "warm", work / "warm_megatron")
        export_hf(work / "warm_megatron", work / "warm", work / "warm_back")
        imported = peak_of(lambda: import_hf(folder / "hf", work / "megatron"))
        exported = peak_of(lambda: export_hf(work / "megatron", folder / "hf", work / "back", shard_bytes=shard_bytes))
    return [imported, exported]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Sizes of the model, and the peaks of each repeat in both directions, in bytes."""
    sizes = write_model(folder / "hf", options.layers, options.hidden, options.vocabulary, options.shard_bytes)
    new_process = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=new_process, max_tasks_per_child=1) as pool:
        found = [pool.submit(peaks, folder, options.shard_bytes).result() for _ in range(options.repeats)]
    return {
        "model": sum(sizes),
        "largest_tensor": max(sizes),
        "shard": options.shard_bytes,
        **{way: [pair[number][0] for pair in found] for number, way in enumerate(WAYS)},
        **{f"{way}_seconds": [pair[number][1] for pair in found] for number, way in enumerate(WAYS)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--shard-bytes", type=int, default=64_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="also write the percentiles there")
    options = parser.parse_args()
    found = conditions("torch", "safetensors", "megatron-core")  # before others change the folder
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    print(json.dumps(figures))
    if options.csv:
        spread: dict[str, Any] = {}
        for way in WAYS:
            spread |= percentiles(f"{way}_peak", figures.pop(way), 0)
        for way in WAYS:
            spread |= percentiles(f"{way}_seconds", figures.pop(f"{way}_seconds"), 1)
        row = {name: getattr(options, name) for name in ("layers", "hidden", "vocabulary", "repeats")}
        write_csv(options.csv, [row | figures | spread | found])


if __name__ == "__main__":
    main()
