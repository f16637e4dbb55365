#!/usr/bin/env bash
# The whole main job on preferences of real people: import, a small base, SFT, reward model, PPO, sampled answers, report.
#   examples/real_preferences.sh FILE [FOLDER]
# FILE: Anthropic HH transcripts or JSON lines {prompt, chosen, rejected}, gzip or not. FOLDER: the project to make.
# Run again with the same arguments, it goes on where it stopped. About a quarter of an hour on two cores.
set -euo pipefail

file=${1:?"usage: $0 FILE [FOLDER]"}
folder=${2:-real-preferences}
bridle=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/bridle
[ -x "$bridle" ] || bridle=bridle

if [ ! -f "$folder/bridle.toml" ]; then
  # A model of 2 M parameters with a longer context: real dialogues are longer than the playground's.
  "$bridle" init "$folder" \
    --set model.vocab_size=4096 --set model.hidden_size=192 --set model.intermediate_size=512 --set model.heads=6 --set model.kv_heads=6 \
    --set pretrain.length=256 --set pretrain.batch_size=8 --set data.pretrain_tokens=2000000 --set model.max_positions=384 \
    --set sft.epochs=1 --set sampling.max_new_tokens=64 --set data.heldout_share=0.2 --set data.heldout_prompts=400 \
    --set data.train_prompts=1500 --set data.compared_heldout=50 \
    --set reward.batch_size=16 --set reward.learning_rate=3e-4 \
    --set sampling.answers=2 --set ppo.prompts_per_step=64
fi
"$bridle" import "$file" --project "$folder"
for method in pretrain sft reward ppo; do
  [ -f "$folder/runs/$method-0001/result.json" ] || "$bridle" train "$method" --project "$folder"
done
[ -f "$folder/runs/sample-0001/result.json" ] || "$bridle" sample --project "$folder"
"$bridle" evaluate ppo sft --by reward --project "$folder"
"$bridle" report --project "$folder"
