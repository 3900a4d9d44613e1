"""Reinforcement learning with the verifiable reward (TRL's GRPO): 128 completions a step, 16 for each prompt."""

from post_training import CPU, parse, read, save
from reward import reward
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    options = parse(__doc__)
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


if __name__ == "__main__":
    main()
