"""How each stage is made: the commands of the real path, with the sizes of the tiny world."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from compare.arms import ARMS, MORE_REFERENCES, RL_ERRORS, Arm
from compare.commands import HERE, PROJECT, Commands, StageFailed
from compare.worlds import BATCH, SEQUENCE, TOKENS_PER_STEP, World
from megatron_remit.artifacts import write_whole

_CONVERTING = threading.Lock()
"""Megatron is imported late, as --help need not wait for it, and two threads that import it at once could see modules
half made."""


def steps_of(log: list[dict[str, float]]) -> int:
    """How many steps a trainer took."""
    return int(max(entry["step"] for entry in log))


def rewards(log: list[dict[str, float]]) -> tuple[float, float]:
    """The mean reward of the first quarter of RL's steps and of the last, of five entries at least: a step has eight
    questions, and the means of a few steps are mostly chance."""
    found = [entry["reward"] for entry in log if "reward" in entry]
    quarter = max(5, len(found) // 4)
    return mean(found[:quarter]), mean(found[-quarter:])


class Stages(Commands):
    """The stages of one world; each appends to the log of its own name."""

    def __init__(self, world: World, log: Path) -> None:
        super().__init__(world.threads, log)
        self.world = world

    def _at_once(self, *actions: Callable[["Stages"], object]) -> None:
        """Do what does not need one another with one thread each, as many at once as the stage has threads."""
        narrow = Stages(replace(self.world, threads=1), self.log)
        with ThreadPoolExecutor(self.world.threads) as pool:
            for done in [pool.submit(action, narrow) for action in actions]:
                done.result()

    def make_data(self) -> None:
        """Corpora, problems, tokenizer, and a random model."""
        world, sizes = self.world, self.world.sizes
        tokens = (sizes.base, sizes.grow, sizes.mid_corpus)
        flags = [f"--{name}-tokens={count}" for name, count in zip(("base", "grow", "mid"), tokens, strict=True)]
        counts = [f"--heldout={sizes.heldout}", f"--heldout-skill={sizes.heldout_skill}", f"--sft={sizes.sft * 32}"]
        self.python(
            HERE / "make_world.py",
            f"--out={world.data}",
            f"--seed={world.base}",
            f"--errors={world.errors}",
            *flags,
            *counts,
        )
        shutil.rmtree(world.hf("init"), ignore_errors=True)
        self.python(
            HERE / "hf_models.py",
            "init",
            f"--tokenizer={world.data}/tokenizer",
            f"--out={world.hf('init')}",
            f"--seed={world.base}",
            f"--size={world.size}",
        )
        self._import("init")

    def make_base(self) -> None:
        """Pretrained from scratch, then on problems of more steps until it is past its jump."""
        sizes = self.world.sizes
        self.pretrain("young", "init", "base", sizes.base, 2e-3, 1e-3, 1)
        before = "young"
        for attempt in range(sizes.grown):
            self.pretrain("base", before, "grow", sizes.grow, 1e-3, 1e-4, 1 + attempt)
            self.export("base")
            found = self.measure_hf("base", {"arm": "base"})
            reached = max(mean(found["points"][0]["nll"][task]) for task in ("two_step", "three_step"))
            if reached < sizes.jump:
                return
            before = f"base{attempt}"
            shutil.rmtree(self.world.megatron(before), ignore_errors=True)
            os.rename(self.world.megatron("base"), self.world.megatron(before))
        raise StageFailed(f"the base of {self.world.name} is not past its jump: {reached:.2f} nats a solution")

    def post_train(self, name: str, source: Path, data: str, steps: int, kind: str, *flags: str) -> None:
        """SFT or GRPO (``kind``) of the model in ``source`` with the flags of hf_models.py, and its import."""
        shutil.rmtree(self.world.hf(name), ignore_errors=True)
        more = [f"--learning-rate={self.world.sizes.grpo_lr}"] if kind == "grpo" else []
        self.python(
            HERE / "hf_models.py",
            kind,
            f"--model={source}",
            f"--data={self.world.data}/{data}.jsonl",
            f"--out={self.world.hf(name)}",
            f"--steps={steps}",
            *more,
            *flags,
        )
        self._import(name)

    def reference(self) -> None:
        """SFT, then GRPO until its mean reward is ``sizes.reward``, or for ``sizes.grpo`` steps; both measured."""
        world, sizes = self.world, self.world.sizes
        self.post_train("sft", world.hf("base"), "sft", sizes.sft, "sft")
        self.post_train("rl_reference", world.hf("sft"), "grpo", sizes.grpo, "grpo", f"--until={sizes.reward}")
        settings = self._of_rl("rl_reference")
        before, reward = settings["reward_before"], settings["reward"]
        if reward < min(before, sizes.reward) - sizes.fall:
            raise StageFailed(f"RL in {world.name} lowered its reward from {before:.2f} to {reward:.2f}")
        self._at_once(
            partial(Stages.measure_hf, model="sft", about={"arm": "sft"}),
            partial(Stages.measure_hf, model="rl_reference", about={"arm": "rl_reference", "settings": settings}),
        )

    def more_references(self) -> None:
        """An early RL model; SFT on the corpus' own errors, and RL behind it, where only the reward knows what is
        right."""
        sizes = self.world.sizes
        self.post_train("sft_errors", self.world.hf("base"), "sft_errors", sizes.sft, "sft")
        longer = (f"--learning-rate={sizes.grpo_errors_lr}", f"--until={sizes.reward}")
        self.post_train("rl_errors", self.world.hf("sft_errors"), "grpo", sizes.grpo_errors, "grpo", *longer)
        tenth = -(-self._of_rl("rl_reference")["grpo_steps"] // 10)
        self.post_train("rl_early", self.world.hf("sft"), "grpo", tenth, "grpo")
        for name in MORE_REFERENCES:
            settings = self._of_rl(name) if name == RL_ERRORS else {}
            self.measure_hf(name, {"arm": name, "settings": settings})

    def _of_rl(self, name: str) -> dict[str, Any]:
        """Steps of a model's RL, and its mean reward at their beginning and end."""
        log = json.loads((self.world.hf(name) / "metrics.json").read_text())
        before, reward = rewards(log)
        return {"grpo_steps": steps_of(log), "reward_before": before, "reward": reward}

    def select(self) -> None:
        """MiniPLM: the documents that the RL model prefers most over the base, by a score store of each."""
        world = self.world
        steps = world.sizes.mid_corpus * 11 // 10 // TOKENS_PER_STEP + 1  # more than one epoch of the corpus
        data = [
            f"--load={world.megatron('base')}",
            "--use-checkpoint-args",
            *self.data_flags("mid", 1),
            "--row-seed=1",
        ]
        data += [f"--train-iters={steps}"]
        for name in ("base", "rl_reference"):
            self.torchrun(
                str(PROJECT / "tools/score_corpus.py"),
                *data,
                f"--reference-load={world.megatron(name)}",
                f"--score-store={world.folder}/scores/{name}",
            )
        for suffix in (".bin", ".idx", ".json"):
            (world.data / f"selected{suffix}").unlink(missing_ok=True)
        self.tool(
            "select_samples",
            *data,
            f"--store-large={world.folder}/scores/rl_reference",
            f"--store-small={world.folder}/scores/base",
            "--keep-ratio=0.8",
            f"--out={world.data}/selected",
        )

    def arm(self, run: str, name: str, order: int, reference: str | None = None) -> None:
        """Mid-train with the arm ``name`` as the run ``run``; ``reference`` in place of the arm's own."""
        arm = ARMS[name]
        self.pretrain(
            run,
            "base",
            arm.corpus,
            round(self.world.sizes.mid * arm.tokens),
            5e-4,
            5e-5,
            order,
            *self._objective(arm, reference),
            saves=self.world.sizes.points,
        )

    def _objective(self, arm: Arm, reference: str | None) -> list[str]:
        flags = [f"--objective={arm.objective}", *arm.flags]
        chosen = reference or arm.reference
        if chosen is not None:
            flags.append(f"--reference-load={self.world.megatron(chosen)}")
        if arm.base_of_reference:
            flags.append(f"--reference-base-load={self.world.megatron('base')}")
        return flags

    def pretrain(
        self,
        name: str,
        start: str,
        corpus: str,
        tokens: int,
        lr: float,
        min_lr: float,
        order: int,
        *flags: str,
        saves: int = 1,
    ) -> None:
        """The training program: ``tokens`` tokens in an order drawn from ``order``, with ``saves`` checkpoints."""
        world, steps = self.world, tokens // TOKENS_PER_STEP
        for left in (world.megatron(name), self.tensorboard(name)):
            shutil.rmtree(left, ignore_errors=True)
        self.torchrun(
            "-m", "megatron_remit.pretrain", f"--load={world.megatron(start)}", "--use-checkpoint-args", "--finetune",
            "--exit-on-missing-checkpoint", *self.data_flags(corpus, order), f"--train-iters={steps}",
            f"--lr={lr}", f"--min-lr={min_lr}", "--lr-decay-style=cosine", "--lr-warmup-fraction=0.02",
            "--adam-beta1=0.9", "--adam-beta2=0.95", "--weight-decay=0.1", "--clip-grad=1.0",
            f"--save={world.megatron(name)}", f"--save-interval={-(-steps // saves)}", "--no-save-optim",
            f"--tensorboard-dir={self.tensorboard(name)}", "--tensorboard-log-interval=1", "--log-interval=10", *flags,
        )  # fmt: skip

    def data_flags(self, corpus: str, order: int) -> list[str]:
        """What a run reads."""
        # Each order has a cache of its own: two runs at once do not write the same index.
        cache = self.world.data / "cache" / f"{corpus}.{order}.{self.log.stem}"
        return [
            "--tokenizer-type=HuggingFaceTokenizer", f"--tokenizer-model={self.world.hf('init')}",
            f"--data-path={self.world.data}/{corpus}", "--split=100,0,0", "--eval-iters=0", "--eval-interval=1000000",
            f"--seq-length={SEQUENCE}", f"--seed={order}", f"--micro-batch-size={BATCH}",
            f"--global-batch-size={BATCH}", f"--data-cache-path={cache}",
        ]  # fmt: skip

    def measure_run(self, run: str, cell: str, about: dict[str, Any], keep_hf: bool = False) -> None:
        """The points of a training run into ``eval/CELL.json``; the checkpoints go."""
        world = self.world
        keep = [f"--keep-hf={world.hf(run)}"] if keep_hf else []
        self.python(
            HERE / "measure.py", f"--megatron={world.megatron(run)}", f"--hf-template={world.megatron('init')}/hf",
            f"--tensorboard={self.tensorboard(run)}", f"--sequences-per-step={BATCH}", f"--sequence-length={SEQUENCE}",
            *self._measured(cell, about), *keep,
        )  # fmt: skip
        shutil.rmtree(world.megatron(run))

    def token_kinds(self, policies: dict[str, str]) -> None:
        """What the weights do to each kind of token under these models (name -> folder), into ``token_kinds.json``."""
        world = self.world
        about = {"base": world.base, "errors": world.errors, "size": world.size}
        self.python(
            HERE / "token_kinds.py", f"--hf={world.folder}/hf", f"--policies={json.dumps(policies)}",
            f"--pieces={world.data}/pieces.jsonl", f"--sequence-length={SEQUENCE}", f"--about={json.dumps(about)}",
            f"--out={world.run_dir}/token_kinds.json",
        )  # fmt: skip

    def measure_hf(self, model: str, about: dict[str, Any], cell: str | None = None) -> dict[str, Any]:
        """The figures of a model into ``eval/CELL.json``."""
        cell = cell or f"models.{about['arm']}.{self.world.name}"
        about = {"study": "models", "order": "1", "stage": "model"} | about
        self.python(HERE / "measure.py", f"--hf={self.world.hf(model)}", *self._measured(cell, about))
        return json.loads((self.world.run_dir / f"eval/{cell}.json").read_text())

    def _measured(self, cell: str, about: dict[str, Any]) -> list[str]:
        world = self.world
        named = {"base": world.base, "errors": world.errors, "size": world.size} | about
        # The first of two or of three results is the wrong one in so many problems.
        settings = {"threads": world.threads, "wrong_results": world.errors * (1 / 2 + 1 / 3) / 2}
        named["settings"] = settings | about.get("settings", {})
        reference = [f"--reference={world.hf('rl_reference')}"] if world.hf("rl_reference").is_dir() else []
        return [
            f"--data={world.data}/heldout.jsonl",
            f"--about={json.dumps(named)}",
            f"--out={world.run_dir}/eval/{cell}.json",
            *reference,
        ]

    def copy_cell(self, cell: str, to: str, study: str) -> None:
        """The figures of ``cell`` as a cell of another study too."""
        folder = self.world.run_dir / "eval"
        content = json.loads((folder / f"{cell}.json").read_text())
        write_whole(folder / f"{to}.json", json.dumps(content | {"study": study}) + "\n")

    # Both in this process: to start another takes longer than a conversion.

    def _import(self, name: str) -> None:
        with _CONVERTING:
            from megatron_remit.convert.hf_to_megatron import import_hf

            import_hf(self.world.hf(name), self.world.megatron(name), overwrite=True)

    def export(self, name: str, to: str = "") -> None:
        """The Hugging Face folder ``to`` (default: of the same name) of a checkpoint."""
        template, out = self.world.megatron("init") / "hf", self.world.hf(to or name)
        with _CONVERTING:
            from megatron_remit.convert.megatron_to_hf import export_hf

            export_hf(self.world.megatron(name), template, out, overwrite=True)

    def tensorboard(self, name: str) -> Path:
        """The log of a training run."""
        return self.world.folder / "tensorboard" / name
