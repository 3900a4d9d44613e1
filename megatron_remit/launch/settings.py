"""The settings of a job, read from the environment: the paper's values per model, and what follows from the settings.

The variables themselves, with defaults and checks, are in ``variables.py``. A variable that is set to nothing counts as
not set. Runs on the host with the standard library alone (see ``megatron_remit.launch.job``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_remit.errors import UserError
from megatron_remit.launch.slurm import Container
from megatron_remit.launch.values import Host, Values, is_weight
from megatron_remit.launch.variables import VARIABLES

# The paper's values per model (section 5.1 and appendix D); the microbatches are ours. A step of GLOBAL_BATCH_SIZE
# sequences has 2M tokens for OLMo-2 and SmolLM3, 64M for Youtu-LLM (M is 2^20). The paper has no OLMo-3: its values are
# those of Ai2's own mid-training (OLMo-core, src/scripts/train/OLMo3/OLMo3-7B-midtraining.py), which decays linearly.
RECIPES = {
    "olmo1b": {"SEQ_LENGTH": "4096", "GLOBAL_BATCH_SIZE": "512", "LR": "3e-4"}
    | {"MICRO_BATCH_SIZE": "4", "REFERENCE_MICRO_BATCH_SIZE": "8"},
    "smollm3_3b": {"SEQ_LENGTH": "8192", "GLOBAL_BATCH_SIZE": "256", "LR": "2e-4"}
    | {"MICRO_BATCH_SIZE": "1", "REFERENCE_MICRO_BATCH_SIZE": "2"},
    "youtu_llm_2b": {"SEQ_LENGTH": "8192", "GLOBAL_BATCH_SIZE": "8192", "LR": "2e-4"}
    | {"MICRO_BATCH_SIZE": "1", "REFERENCE_MICRO_BATCH_SIZE": "2"},
    "olmo3_7b": {"SEQ_LENGTH": "8192", "GLOBAL_BATCH_SIZE": "256", "LR": "2.0712352850360292e-4"}
    | {"TOKENS": "100000000000", "TP": "2", "MICRO_BATCH_SIZE": "1", "REFERENCE_MICRO_BATCH_SIZE": "2"},
}
_MEGATRONS_TIMEOUT_MINUTES = 10


@dataclass(frozen=True)
class Settings:
    """All settings of one run, checked. A field is the variable of its name in capitals; all paths are whole."""

    project: Path  # the folder of this repository on the host
    base_hf: Path
    corpus: str
    run_dir: Path
    objective: str
    rl_hf: Path | None
    import_dir: Path
    task: str
    scores: Path | None
    seq_length: int
    global_batch_size: int
    lr: str
    min_lr: str
    epsilon: str
    tokens: int
    train_iters: int
    warmup_iters: str
    seed: str
    split: str
    valid: tuple[tuple[str, str], ...]
    save_tokens: int
    save_interval: int
    keep_last: int
    keep_tokens: int
    async_save: bool
    eval_interval: str
    eval_iters: str
    precision: str
    extra_args: str
    micro_batch_size: int
    reference_micro_batch_size: int
    tp: int
    pp: int
    ep: int
    nodes: int
    gpus_per_node: int
    gpu: str
    max_epochs: str
    master_addr: str
    master_port: str
    max_restarts: int
    retries: int
    retry_seconds: float
    node_failures: int
    hang_minutes: float
    start_minutes: float
    setup: str
    stage: Path | None
    stage_what: tuple[str, ...]
    container_image: str
    container_runtime: str
    container_mounts: str
    container_project: str
    venv: str
    python: str
    omp_num_threads: str
    cuda_device_max_connections: str

    @property
    def data_path(self) -> list[str]:
        """The words for ``--data-path``: weights as they are, prefixes as whole paths."""
        return [word if is_weight(word) else os.path.realpath(word) for word in self.corpus.split()]

    @property
    def heartbeat(self) -> Path:
        """The file in which the run notes its steps."""
        return self.run_dir / "heartbeat.json"

    @property
    def keep_interval(self) -> int:
        """Every checkpoint of a multiple of so many steps stays: ``KEEP_TOKENS`` in whole saves. 0: all stay."""
        tokens_per_save = self.save_interval * self.global_batch_size * self.seq_length
        return self.save_interval * max(1, round(self.keep_tokens / tokens_per_save)) if self.keep_tokens else 0

    @property
    def timeout_minutes(self) -> int:
        """How long a rank waits for the others (``--distributed-timeout-minutes``). It is up before the job takes the
        run for hung, so that the ranks can still write down which of them waited for what."""
        return max(1, int(self.hang_minutes * 2 / 3)) if self.hang_minutes else _MEGATRONS_TIMEOUT_MINUTES

    def logs(self, start: str) -> Path:
        """The folder of the ranks' logs of one start of the training program."""
        return self.run_dir / "logs" / start

    @property
    def tools(self) -> str:
        """The folder of the tools on the nodes, as the job's Python sees it."""
        return f"{self.container_project if self.container_image else self.project}/tools"

    @property
    def container(self) -> Container | None:
        """The image, with each folder that the run reads or writes at the same path inside; None without an image."""
        if not self.container_image:
            return None
        folders = {self.base_hf, self.rl_hf or self.base_hf, self.run_dir, self.import_dir}
        folders |= {Path(word).parent for word in self.data_path if not is_weight(word)}
        folders |= {Path(prefix).parent for _, prefix in self.valid}
        if self.scores:
            folders.add(self.scores.parent)
        mounts = [f"{folder}:{folder}" for folder in sorted(map(str, folders))]
        if self.stage:
            mounts.append(f"{self.stage}:{self.stage}")
        if self.container_mounts:
            mounts.append(self.container_mounts)
        return Container(self.container_image, ",".join(mounts), self.container_project, self.container_runtime)

    @property
    def environment(self) -> dict[str, str]:
        """What the commands on the nodes find in their environment."""
        return {
            "OMP_NUM_THREADS": self.omp_num_threads,
            "CUDA_DEVICE_MAX_CONNECTIONS": self.cuda_device_max_connections,
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }


def read(environment: Mapping[str, str], recipe: str, host: Host) -> Settings:
    """The settings from ``environment``; ``recipe`` is the model's row in ``RECIPES``.

    Raises:
        UserError: a variable is missing or its value cannot be used.
    """
    if recipe not in RECIPES:
        raise UserError(f"recipe '{recipe}': expected one of {', '.join(RECIPES)} (RECIPES in {__file__})")
    # Slurm's number of nodes wins over a variable that is left over from a dry run.
    given = {**RECIPES[recipe], **{name: text for name, text in environment.items() if text}}
    if host.allocation.nodes:
        given["NODES"] = host.allocation.nodes
    values: Values = {}
    for variable in VARIABLES:
        text = given.get(variable.name)
        if text is None:
            text = variable.default(values, host) if callable(variable.default) else variable.default
        if text is None:
            raise UserError(
                f"{variable.name} is not set: give {variable.meaning} (docs/cluster.md lists the variables)"
            )
        values[variable.name.lower()] = variable.check(variable.name, text, values)
    settings = Settings(project=host.project, **values)
    _check_nodes(settings)
    return settings


def _check_nodes(settings: Settings) -> None:
    """Refuse a number of nodes over which the batch does not divide, and say which numbers do.

    Only the batch: what else must divide the plan checks, with Megatron's own rules. With flags of its own the run may
    have another layout than these variables say.
    """
    model = settings.tp * settings.pp
    if settings.extra_args or settings.nodes * settings.gpus_per_node % model:
        return

    def divides(nodes: int) -> bool:
        gpus = nodes * settings.gpus_per_node
        return gpus % model == 0 and settings.global_batch_size % (settings.micro_batch_size * (gpus // model)) == 0

    if divides(settings.nodes):
        return
    step = settings.micro_batch_size * settings.nodes * settings.gpus_per_node // model
    below = [f"{nodes}" for nodes in range(settings.nodes - 1, 0, -1) if divides(nodes)][:1]
    above = [f"{nodes}" for nodes in range(settings.nodes + 1, 4 * settings.nodes + 1) if divides(nodes)][:1]
    near = max(1, round(settings.global_batch_size / step)) * step
    nodes = f"{' or '.join(below + above)} nodes, or " if below + above else ""
    raise UserError(
        f"NODES={settings.nodes} with {settings.gpus_per_node} GPUs each: GLOBAL_BATCH_SIZE="
        f"{settings.global_batch_size} does not divide by MICRO_BATCH_SIZE={settings.micro_batch_size} x "
        f"{step // settings.micro_batch_size} replicas; take {nodes}GLOBAL_BATCH_SIZE={near}"
    )
