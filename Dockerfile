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

# What the image compiled against its own torch stays as it is: those versions become pip's constraints, in place of the
# image's own list (PIP_CONSTRAINT), which pins all it holds. What the image lacks comes in the versions that the tests
# passed with. What it has and is new enough is left alone: some of it came with apt, and pip cannot replace that.
RUN python -m pip list --format=freeze > /tmp/image.txt \
    && grep -iE '^(torch|torchvision|triton|pytorch-triton|numpy|transformer.?engine|flash.?attn|apex|nvidia)' \
      /tmp/image.txt > /tmp/kept.txt \
    && cut -d= -f1 /tmp/image.txt | sed 's/[-_.]/[-_.]/g; s/.*/^&==/' > /tmp/present.txt \
    && grep -viE -f /tmp/present.txt constraints.txt > /tmp/added.txt \
    && PIP_CONSTRAINT='' python -m pip install --no-cache-dir -c /tmp/kept.txt -c /tmp/added.txt -e . \
    && sort /tmp/kept.txt > /tmp/sorted.txt \
    && python -m pip list --format=freeze | grep -xiF -f /tmp/kept.txt | sort | diff - /tmp/sorted.txt \
    && rm /tmp/image.txt /tmp/kept.txt /tmp/present.txt /tmp/added.txt /tmp/sorted.txt

# Not root: files that a job writes into mounted folders belong to the user whose id is passed at build or run time.
# (Not named UID: bash has a variable of that name.)
ARG USER_ID=1000
RUN getent passwd "${USER_ID}" > /dev/null || useradd --create-home --uid "${USER_ID}" remit
USER ${USER_ID}
ENV HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 CUDA_DEVICE_MAX_CONNECTIONS=1
CMD ["torchrun", "--nproc-per-node", "1", "-m", "megatron_remit.pretrain", "--help"]
