"""Supervised fine-tuning on worked solutions (TRL)."""

from post_training import CPU, parse, read, save
from trl import SFTConfig, SFTTrainer


def main() -> None:
    options = parse(__doc__)
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


if __name__ == "__main__":
    main()
