#!/usr/bin/env bash
# How weights/storyteller was made, in about half an hour on two quiet cores:
#     scripts/storyteller.sh TINYSTORIES RUN
# TINYSTORIES is a folder with train_cased.txt and train_lowercase.txt (5,509 stories of TinyStories), RUN a new folder.
# A run that was stopped goes on with the same command. The weights there learnt from the stories of commit ee4ef1b:
# write_stories.py has got other plots since, so that a run today gives other weights.
set -euo pipefail
tiny=${1:?a folder with train_cased.txt and train_lowercase.txt} run=${2:?a folder to work in}
scripts=$(dirname "$0")
mkdir -p "$run"
if [ ! -e "$run/data/shards.json" ]; then
  python "$scripts/tinystories.py" "$tiny/train_cased.txt" "$tiny/train_lowercase.txt" --out "$run/tiny.jsonl"
  python "$scripts/write_stories.py" --count 30000 --seed 1 --out "$run/made.jsonl"
  python "$scripts/train_tokenizer.py" "$run/tiny.jsonl" "$run/made.jsonl" --size 2048 --out "$run/tokenizer"
  python "$scripts/prepare_data.py" "$run/tiny.jsonl" "$run/made.jsonl" --tokenizer "$run/tokenizer" --out "$run/data" --validation 0.01
fi
resume=$([ -e "$run/training/latest" ] && echo --resume || true)
python "$scripts/pretrain.py" "$run/data" --out "$run/training" --dim 192 --layers 6 --heads 6 --kv-heads 2 --length 256 \
  --batch 16 --steps 3000 --warmup 100 --lr 3e-3 --dtype bf16 --save-every 200 --validate-every 200 --sample-every 400 --seed 1 $resume
python -m llama3_scratch.convert "$run/training/model" "$run/storyteller" --to meta --dtype bfloat16
python "$scripts/tell_stories.py" "$run/storyteller" --text "$run/tiny.jsonl" "$run/made.jsonl"
