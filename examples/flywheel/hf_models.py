"""The Hugging Face models of the flywheel: a random one to start from, and post-training (TRL) by SFT and by GRPO."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from compare.worlds import SHAPES
from datasets import Dataset
from make_world import reward
from transformers import AutoTokenizer, Olmo2Config, Olmo2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

# No GPU, no reports, no checkpoints on the way; one line of log every ten steps.
CPU = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_steps": 10,
    "gradient_checkpointing": False,
    "seed": 1,
}


class StopAtReward(TrainerCallback):
    """Ends GRPO once the mean reward of the last steps has reached a target."""

    def __init__(self, target: float, over: int = 5) -> None:
        self._target, self._over, self._rewards = target, over, []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """TRL logs ``reward`` at every logged step."""
        if "reward" in logs:
            self._rewards.append(logs["reward"])
        last = self._rewards[-self._over :]
        if len(last) == self._over and sum(last) / self._over >= self._target:
            control.should_training_stop = True


def init(options: argparse.Namespace) -> None:
    """A random OLMo-2 model."""
    hidden, feed_forward, layers, heads = SHAPES[options.size]
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer, trust_remote_code=False)
    config = Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = Olmo2ForCausalLM(config)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"{options.out}: {sum(weight.numel() for weight in model.parameters()) / 1e6:.2f}M parameters")


def sft(options: argparse.Namespace) -> None:
    """Supervised fine-tuning on worked solutions."""
    settings = SFTConfig(
        output_dir=str(options.out) + ".trainer",
        max_steps=options.steps,
        per_device_train_batch_size=32,
        learning_rate=2e-4,
        max_length=128,
        completion_only_loss=True,
        **CPU,
    )
    data = read(options.data, ("prompt", "completion"))
    trainer = SFTTrainer(model=str(options.model), args=settings, train_dataset=data)
    trainer.train()
    save(trainer, options.model, options.out)


def grpo(options: argparse.Namespace) -> None:
    """Reinforcement learning with the verifiable reward: 128 completions per step, 16 for each prompt; ``--steps``, or
    less where the reward reaches ``--until``."""
    settings = GRPOConfig(
        output_dir=str(options.out) + ".trainer",
        max_steps=options.steps,
        per_device_train_batch_size=128,
        steps_per_generation=1,
        num_generations=16,
        max_completion_length=48,
        learning_rate=options.learning_rate,
        beta=0.0,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        use_vllm=False,
        mask_truncated_completions=False,
        **CPU | {"logging_steps": 2},
    )
    data = read(options.data, ("prompt", "answer"))
    trainer = GRPOTrainer(model=str(options.model), reward_funcs=reward, args=settings, train_dataset=data)
    if options.until is not None:
        trainer.add_callback(StopAtReward(options.until))
    trainer.train()
    save(trainer, options.model, options.out)


def read(path: Path, columns: tuple[str, ...]) -> Dataset:
    """The named columns of a JSONL file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return Dataset.from_list([{name: row[name] for name in columns} for row in rows])


def save(trainer: Any, source: Path, out: Path) -> None:
    """Model and tokenizer under a temporary name, then renamed; ``metrics.json`` holds the trainer's log."""
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    trainer.model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(temporary)
    (temporary / "metrics.json").write_text(json.dumps(trainer.state.log_history, indent=1))
    os.rename(temporary, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for make in (init, sft, grpo):
        command = commands.add_parser(make.__name__, help=make.__doc__, description=make.__doc__)
        command.set_defaults(make=make)
        command.add_argument("--out", type=Path, required=True, help="new Hugging Face folder")
        if make is init:
            command.add_argument("--tokenizer", type=Path, required=True)
            command.add_argument("--seed", type=int, default=1)
            command.add_argument("--size", choices=SHAPES, required=True)
        else:
            command.add_argument("--model", type=Path, required=True, help="Hugging Face folder to start from")
            command.add_argument("--data", type=Path, required=True, help="JSONL of problems")
            command.add_argument("--steps", type=int, required=True)
        if make is grpo:
            command.add_argument("--until", type=float, metavar="REWARD", help="stop at this mean reward")
            command.add_argument("--learning-rate", type=float, default=2e-4, help="default: %(default)s")
    options = parser.parse_args()
    options.make(options)


if __name__ == "__main__":
    main()
