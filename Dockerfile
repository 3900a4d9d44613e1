# megatron-remit on NVIDIA's PyTorch image, which brings torch, CUDA, Transformer Engine, apex and flash-attn:
#
#   docker build -t megatron-remit .
#   docker run --gpus all --ipc=host --rm megatron-remit torchrun --nproc-per-node 8 -m megatron_remit.pretrain --help
#
# docs/cluster.md says how the job scripts use it.
ARG BASE=nvcr.io/nvidia/pytorch:26.04-py3
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /opt/megatron-remit
COPY pyproject.toml constraints.txt LICENSE README.md ./
COPY megatron_remit megatron_remit
COPY kernels kernels
COPY tools tools
COPY examples examples
COPY docs docs

# What the image compiled against its own torch stays as it is: its versions become pip's constraints, in place of the
# image's own list (PIP_CONSTRAINT), which pins everything. The rest comes in the versions that the tests passed with.
RUN python -m pip list --format=freeze \
      | grep -iE '^(torch|torchvision|triton|pytorch-triton|numpy|transformer.?engine|flash.?attn|apex|nvidia)' \
      > /tmp/image.txt \
    && cut -d= -f1 /tmp/image.txt | sed 's/.*/^&==/' > /tmp/kept.txt \
    && grep -viE -f /tmp/kept.txt constraints.txt > /tmp/ours.txt \
    && PIP_CONSTRAINT='' python -m pip install --no-cache-dir -c /tmp/image.txt -c /tmp/ours.txt -e . \
    && python -m pip list --format=freeze | grep -xiF -f /tmp/image.txt | sort | diff - <(sort /tmp/image.txt) \
    && rm /tmp/image.txt /tmp/kept.txt /tmp/ours.txt

# Not root: files that a job writes into mounted folders belong to the user whose id is passed at build or run time.
ARG UID=1000
RUN id -u "${UID}" > /dev/null 2>&1 || useradd --create-home --uid "${UID}" remit
USER ${UID}
ENV HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 CUDA_DEVICE_MAX_CONNECTIONS=1
CMD ["torchrun", "--nproc-per-node", "1", "-m", "megatron_remit.pretrain", "--help"]
