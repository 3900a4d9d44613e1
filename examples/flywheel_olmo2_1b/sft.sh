#!/usr/bin/env bash
# SFT of the mid-trained model, with Ai2's settings for OLMo-2-1B: about 9 hours on 8 H100, as Ai2 says.
#
# stage.sh has the variables; submit.sh submits it.
#SBATCH --job-name=remit_sft
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

# sbatch runs a copy of this file from a spool folder: the project is then found from where the job was submitted.
here=$(dirname "${BASH_SOURCE[0]}")
[[ -e $here/stage.sh ]] || here=${REMIT_PROJECT:-${SLURM_SUBMIT_DIR:-.}}/examples/flywheel_olmo2_1b
[[ -e $here/stage.sh ]] || {
  echo "error: $here/stage.sh: no such file; submit from the repository's root, or set REMIT_PROJECT to it" >&2
  exit 2
}
# shellcheck source=examples/flywheel_olmo2_1b/stage.sh
source "$here/stage.sh" "$@"

launch 3
command+=(
  open_instruct/finetune.py --exp_name sft
  --model_name_or_path "$IN" --tokenizer_name_or_path "$IN" --use_slow_tokenizer False --add_bos
  --chat_template_name tulu
  --dataset_mixer_list "${SFT_DATA:-allenai/tulu-3-sft-olmo-2-mixture-0225}" 1.0
  --use_flash_attn --max_seq_length 4096
  --per_device_train_batch_size 2 --gradient_accumulation_steps 8
  --learning_rate 3e-5 --lr_scheduler_type linear --warmup_ratio 0.03 --weight_decay 0.0 --num_train_epochs 2
  --logging_steps 1 --seed "${SEED:-1}"
  --output_dir "$part" --do_not_randomize_output_dir --checkpointing_steps 500 --keep_last_n_checkpoints 1
  --push_to_hub False --try_launch_beaker_eval_jobs False
)
finished() { echo "$part"; }
run_stage finished
