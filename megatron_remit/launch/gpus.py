"""GPUs by name: memory, its bandwidth, dense bf16 peak and links, from NVIDIA's data sheets."""

from dataclasses import dataclass

from megatron_remit.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory: int
    """Bytes: the data sheet's GB as 10^9. A driver reports about 7 % more, which the CUDA context and NCCL take."""
    peak: float
    """Floating-point operations per second of dense matrix products in bf16, without sparsity."""
    bandwidth: float
    """Bytes per second between the GPU and its memory."""
    nvlink: float
    """Bytes per second to the other GPUs of the node, one way."""
    network: float
    """Bytes per second to other nodes, one way, with one card per GPU as in a DGX."""


def _gpu(name: str, gigabytes: int, teraflops: float, terabytes: float, nvlink: float, network: float) -> Gpu:
    return Gpu(name, gigabytes * 10**9, teraflops * 1e12, terabytes * 1e12, nvlink * 1e9, network * 1e9)


# NVIDIA's data sheets of the A100, the H100 and H200 (SXM), the GH200, the DGX B200 (1,440 GB in 8 GPUs) and the HGX
# B200. Where a sheet gives the figure with sparsity, or a link both ways, half of it.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100-40GB", 40, 312, 1.555, 300, 25),
        _gpu("A100-80GB", 80, 312, 2.039, 300, 25),
        _gpu("H100-80GB", 80, 989, 3.35, 450, 50),
        _gpu("H200", 141, 989, 4.8, 450, 50),
        _gpu("GH200-96GB", 96, 990, 4.0, 450, 50),
        _gpu("GH200-144GB", 144, 990, 4.9, 450, 50),
        _gpu("B200", 180, 2250, 8.0, 900, 50),
    )
}
DEFAULT_GPU = "H100-80GB"


def gpu(name: str) -> Gpu:
    """The GPU of that name, in capitals or not. Raises UserError for an unknown one."""
    found = GPUS.get(name.upper())
    if found is None:
        raise UserError(f"--gpu {name}: not known; expected one of {', '.join(GPUS)}")
    return found
