"""The Hugging Face models of the flywheel: a random one to start from, and post-training (TRL) by SFT and by GRPO."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from make_data import reward
from transformers import AutoTokenizer, Olmo2Config, Olmo2ForCausalLM
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


def init(options: argparse.Namespace) -> None:
    """A random OLMo-2 model of about 0.9M parameters."""
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    config = Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
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
    """Reinforcement learning with the verifiable reward: 128 completions per step, 16 for each prompt."""
    settings = GRPOConfig(
        output_dir=str(options.out) + ".trainer",
        max_steps=options.steps,
        per_device_train_batch_size=128,
        steps_per_generation=1,
        num_generations=16,
        max_completion_length=48,
        learning_rate=5e-5,
        beta=0.0,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        use_vllm=False,
        mask_truncated_completions=False,
        **CPU,
    )
    data = read(options.data, ("prompt", "answer"))
    trainer = GRPOTrainer(model=str(options.model), reward_funcs=reward, args=settings, train_dataset=data)
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
    AutoTokenizer.from_pretrained(source).save_pretrained(temporary)
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
        else:
            command.add_argument("--model", type=Path, required=True, help="Hugging Face folder to start from")
            command.add_argument("--data", type=Path, required=True, help="JSONL of problems")
            command.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    options.make(options)


if __name__ == "__main__":
    main()
