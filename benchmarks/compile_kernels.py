"""Compile every Triton kernel ahead of time for sm_90 (H100, H200) or sm_100 (B200), without a GPU, and tabulate it.

    python benchmarks/compile_kernels.py --csv benchmarks/results/kernels_sm90.csv
    python benchmarks/compile_kernels.py --target sm_100 --csv benchmarks/results/kernels_sm100.csv

Registers and shared memory are those of the cubin (cuobjdump), spills those that ptxas reports; loads and stores are
counted in the PTX by their width. ``strides`` says how a kernel is called:

* aligned: strides and widths divide by 16 elements, as in every vocabulary that Megatron pads;
* one sequence: aligned, and a microbatch of one, which Triton compiles as a constant (KL and norm know rows only);
* long: aligned, strides beyond 2^31 elements;
* any: nothing is known, so no load can be wider than one element.

The column ``logits`` is the type of what a kernel reads. ``programs_per_sm`` is how many programs the registers and the
2048 threads of a multiprocessor allow. Exit status 1 if a kernel spills or an aligned one reads or writes its input and
output in less than 16 bytes at a time.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from megatron_remit.kernels import kl_triton, logprob_triton, rms_parts_triton, rms_triton

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STRIDES = ("aligned", "one sequence", "long", "any")
TARGETS = {"sm_90": "ptxas", "sm_100": "ptxas-blackwell"}
"""Each with its assembler among those that Triton brings."""
NORM_WIDTH = 2048
NORMS = (
    rms_triton.cast_first_kernel,
    rms_parts_triton.mean_square_kernel,
    rms_parts_triton.scaled_kernel,
    rms_parts_triton.mean_product_kernel,
    rms_parts_triton.gradients_kernel,
)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
REGISTERS_PER_SM, THREADS_PER_SM = 65536, 2048
_OTHER_STRIDES = ("reference_stride", "out_stride", "grad_stride")
_STRIDE_NAMES = ("stride_s", "stride_b", "out_stride_s", "out_stride_b", "stride", *_OTHER_STRIDES)
_MULTIPLES_OF_16 = (*_STRIDE_NAMES, "columns", "width")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: all")
    parser.add_argument("--strides", choices=STRIDES, action="append", help="default: all")
    parser.add_argument("--target", choices=TARGETS, default="sm_90", help="default: %(default)s")
    parser.add_argument("--csv", type=Path, help="write the table to this file")
    options = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    origin = {
        "target": options.target,
        "triton": triton.__version__,
        "ptxas": _ptxas_version(options.target),
        "commit": commit.stdout.strip(),
    }
    rows = []
    for kernel, constants, num_warps, dtypes in _kernels(options.dtype or list(DTYPES)):
        for dtype in dtypes:
            for strides in options.strides or STRIDES:
                if strides == "one sequence" and "batch" not in kernel.arg_names:
                    continue
                rows.append(measure(kernel, constants(dtype), num_warps, dtype, strides, options.target) | origin)
                show(rows[-1])
    merge = {"BLOCK": logprob_triton.MERGE_BLOCK}
    rows.append(measure(logprob_triton.merge_kernel, merge, 4, "fp32", "any", options.target) | origin)
    show(rows[-1])
    if options.csv:
        write(options.csv, rows)
    bad = [row for row in rows if is_bad(row)]
    if bad:
        print("spills, or narrow access to logits:", *(f"{row['kernel']} {row['logits']}" for row in bad))
        sys.exit(1)


def _kernels(dtypes: list[str]) -> list[tuple[JITFunction, Callable[[str], dict[str, int]], int, list[str]]]:
    """Each kernel with its constants by dtype, its warps and its dtypes."""
    found = []
    for kernel, configuration in (
        (logprob_triton.row_statistics_kernel, logprob_triton.statistics_configuration),
        (logprob_triton.gradient_kernel, logprob_triton.gradient_configuration),
        (kl_triton.kl_statistics_kernel, kl_triton.statistics_configuration),
        (kl_triton.kl_gradient_kernel, kl_triton.divergence_configuration),
    ):
        more = {"GRADIENT": True} if "GRADIENT" in kernel.arg_names else {}

        def constants(dtype: str, of: Any = configuration, more: dict[str, bool] = more) -> dict[str, int]:
            return {**of.constants(DTYPES[dtype]), **more}

        found.append((kernel, constants, configuration.num_warps, dtypes))
    chosen, warps = rms_triton.constants(NORM_WIDTH)
    for kernel in NORMS:
        more = {"CAST_FIRST": True} if "CAST_FIRST" in kernel.arg_names else {}
        found.append((kernel, lambda _dtype, more=more: {**chosen, **more}, warps, dtypes))
    return found


def measure(
    kernel: JITFunction, constants: dict[str, int], num_warps: int, dtype: str, strides: str, target: str
) -> dict[str, Any]:
    """Compile one variant; its resources by column name."""
    signature, values, attributes = {}, dict(constants), {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = _type(name, dtype, strides)
        if name in constants:
            signature[name] = "constexpr"
        elif name == "batch" and strides == "one sequence":
            signature[name], values[name] = "constexpr", 1
        elif name.endswith("_ptr") or (name in _MULTIPLES_OF_16 and strides != "any"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", int(target[3:]), 32), options={"num_warps": num_warps})
    ptx = compiled.asm["ptx"]
    registers, stack = _cubin_resources(compiled.asm["cubin"])
    stores, loads = _spills(ptx, target)
    threads = 32 * num_warps
    return {
        "kernel": kernel.__name__,
        "logits": dtype,
        "strides": strides,
        "num_warps": num_warps,
        "unroll": constants.get("UNROLL", 1),
        "tiles": constants.get("TILES", 1),
        "registers": registers,
        "stack_bytes": stack,
        "spill_store_bytes": stores,
        "spill_load_bytes": loads,
        "shared_bytes": compiled.metadata.shared,
        "programs_per_sm": min(THREADS_PER_SM // threads, REGISTERS_PER_SM // (threads * -(-registers // 8) * 8)),
        "loads_16_bytes": len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
        "stores_16_bytes": len(re.findall(r"st\.global\S*\.v4\.b32", ptx)),
        "other_loads": len(re.findall(r"ld\.global(?!\S*\.v4)", ptx)),
        "other_stores": len(re.findall(r"st\.global(?!\S*\.v4)", ptx)),
    }


def is_bad(row: dict[str, Any]) -> bool:
    """Whether a kernel spills, or an aligned one accesses logits in pieces (its other loads are a few numbers)."""
    spills = row["stack_bytes"] or row["spill_store_bytes"] or row["spill_load_bytes"]
    if row["kernel"] == "merge_kernel" or row["strides"] == "any":
        return bool(spills)
    # That of the KL stores one number of a segment besides, that of the norm one of a row.
    others = 1 if row["kernel"] in ("kl_gradient_kernel", "cast_first_kernel") else 0
    writes = "gradient" in row["kernel"] or row["kernel"] in ("cast_first_kernel", "scaled_kernel")
    narrow_stores = writes and (not row["stores_16_bytes"] or row["other_stores"] > others)
    return bool(spills or not row["loads_16_bytes"] or row["other_loads"] > 4 or narrow_stores)


def _type(name: str, dtype: str, strides: str) -> str:
    if name in ("logits_ptr", "gradient_ptr", "reference_ptr", "x_ptr", "weight_ptr", "grad_ptr", "out_ptr"):
        return f"*{dtype}"
    if name in ("factor", "eps"):
        return "fp32"
    if name.endswith("_ptr"):
        return "*i64" if name == "targets_ptr" else "*fp32"
    return "i64" if strides == "long" and name in _STRIDE_NAMES else "i32"


def _cubin_resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and stack bytes per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _run("cuobjdump", "--dump-resource-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return int(found[1]), int(found[2])


def _spills(ptx: str, target: str) -> tuple[int, int]:
    """Bytes that ptxas says it stores to and loads from local memory because registers ran out."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        text = _run(TARGETS[target], "-v", f"--gpu-name={target}a", file.name, "-o", os.devnull)
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    return int(found[1]), int(found[2])


def _ptxas_version(target: str) -> str:
    return re.search(r"V([\d.]+)", _run(TARGETS[target], "--version"))[1]


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['kernel']:>22} {row['logits']} {row['strides']:>12}: {row['registers']:3} registers, "
        f"{row['spill_store_bytes'] + row['spill_load_bytes']} bytes spilled, {row['shared_bytes']:4} bytes shared, "
        f"{row['programs_per_sm']} programs per SM, 16-byte loads {row['loads_16_bytes']}, stores "
        f"{row['stores_16_bytes']}, others {row['other_loads']}, {row['other_stores']}",
        flush=True,
    )


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
