#!/usr/bin/env bash
# A stage of RLVR (GRPO), with Ai2's settings for OLMo-2-1B: about 43 hours on 16 H100, as Ai2 says.
#
# RLVR_STAGE 1: GSM8K, MATH and instructions; 2: MATH alone. stage.sh has the other variables; submit.sh submits it.
#SBATCH --job-name=remit_rlvr
#SBATCH --nodes=2
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

case ${RLVR_STAGE:-} in
  1) data=${RLVR1_DATA:-allenai/RLVR-GSM-MATH-IF-Mixed-Constraints} verifier=(--remap_verifier ifeval=ifeval_old) ;;
  2) data=${RLVR2_DATA:-allenai/RLVR-MATH} verifier=() ;;
  *) fail "RLVR_STAGE is '${RLVR_STAGE:-}': expected 1 or 2" ;;
esac
# 12 GPUs learn and 4 generate. Ai2 saved every 200 steps, which are hours; a job here ends before 43 hours are over.
command=(
  srun --ntasks-per-node=1 --kill-on-bad-exit=1 "${setup[@]}" bash "$(realpath "$here")/ray_node.sh" "$bin"
  "$bin/python" open_instruct/grpo_fast.py --exp_name "rlvr$RLVR_STAGE"
  --model_name_or_path "$IN" --tokenizer_name_or_path "$IN" --add_bos --chat_template_name tulu
  --dataset_mixer_list "$data" 1.0 --dataset_mixer_list_splits train
  --dataset_mixer_eval_list "$data" 16 --dataset_mixer_eval_list_splits train
  --max_prompt_token_length 2048 --response_length 2048 --pack_length 4096
  --apply_verifiable_reward true "${verifier[@]}" --non_stop_penalty --non_stop_penalty_value 0.0
  --stop_strings "</answer>" --temperature 1.0
  --beta 0.01 --kl_estimator 3 --learning_rate 5e-7 --lr_scheduler_type constant
  --num_epochs 1 --num_mini_batches 2 --per_device_train_batch_size 1
  --num_unique_prompts_rollout 48 --num_samples_per_prompt_rollout 16 --total_episodes "${EPISODES:-2000000}"
  --num_learners_per_node 4 8 --vllm_num_engines 1 --vllm_tensor_parallel_size 4
  --deepspeed_stage 2 --deepspeed_zpg 12 --gradient_checkpointing
  --local_eval_every 5 --save_freq 50 --seed "${SEED:-1}"
  --output_dir "$part/models" --checkpoint_state_dir "$part/state" --checkpoint_state_freq 50
  --push_to_hub False --try_launch_beaker_eval_jobs_on_weka False
)
export VLLM_ALLOW_INSECURE_SERIALIZATION=1 NCCL_CUMEM_ENABLE=0
# A start of the trainer writes into a folder named by its time; the one with a model is that which came to the end.
finished() {
  local config
  for config in "$part"/models/*/config.json; do
    [[ -e $config ]] && dirname "$config"
  done | tail -n 1
}
run_stage finished
