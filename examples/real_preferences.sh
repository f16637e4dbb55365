#!/usr/bin/env bash
# The whole main job on preferences of real people: import, a small base, SFT, reward model, PPO and DPO side by side,
# sampled answers, report.
#   examples/real_preferences.sh FILE [FOLDER [--set SECTION.KEY=VALUE …]]
# FILE: whatever `bridle import` reads as preferences (HH transcripts, {prompt, chosen, rejected}, ShareGPT, …), in any language:
# the tokenizer works on bytes and is trained on the file. FOLDER: the project to make; settings go to `bridle init`.
# Run again with the same arguments, it goes on where it stopped.
set -euo pipefail

file=${1:?"usage: $0 FILE [FOLDER [--set SECTION.KEY=VALUE …]]"}
folder=${2:-real-preferences}
bridle=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/bridle
[ -x "$bridle" ] || bridle=bridle

if [ ! -f "$folder/bridle.toml" ]; then
  # A small model with a long context: real dialogues are longer than the playground's, and Chinese takes more tokens.
  # β starts high: on such data PPO overshoots its KL target before β has risen a tenth a step.
  # DPO takes a fifth of the playground's rate: these answers are longer, and its loss sums over their tokens.
  "$bridle" init "$folder" \
    --set model.vocab_size=4096 --set model.hidden_size=128 --set model.intermediate_size=352 --set model.layers=3 \
    --set model.heads=2 --set model.kv_heads=2 --set model.max_positions=1024 \
    --set pretrain.length=256 --set data.pretrain_tokens=1000000 --set sft.epochs=1 --set sampling.max_new_tokens=64 \
    --set data.heldout_share=0.2 --set data.heldout_prompts=400 --set data.train_prompts=1000 --set data.compared_heldout=50 \
    --set reward.batch_size=16 --set reward.slim=false --set sampling.answers=2 \
    --set ppo.prompts_per_step=64 --set ppo.batch_size=32 --set ppo.kl_coef=0.4 --set dpo.learning_rate=1e-4 "${@:3}"
fi
"$bridle" import "$file" --project "$folder"
for method in pretrain sft reward ppo dpo; do
  [ -f "$folder/runs/$method-0001/result.json" ] || "$bridle" train "$method" --project "$folder"
done
[ -f "$folder/runs/sample-0001/result.json" ] || "$bridle" sample --project "$folder" --set data.train_prompts=100
"$bridle" evaluate ppo sft --by reward --project "$folder"
"$bridle" evaluate dpo sft --by reward --project "$folder"
"$bridle" report --project "$folder"
