#!/usr/bin/env bash
# How weights/storyteller was made, in about two hours on two quiet cores:
#     scripts/storyteller.sh TINYSTORIES RUN
# TINYSTORIES is a folder with train_cased.txt and train_lowercase.txt (5,509 stories of TinyStories), RUN a new folder.
# SmolLM2 reads 700 of these stories and then writes some thousand of its own; the generator writes the rest. At the
# end the model reads some more of the generator's stories alone, since these hold together best. A run that was stopped
# goes on with the same command.
set -euo pipefail
tiny=${1:?a folder with train_cased.txt and train_lowercase.txt} run=${2:?a folder to work in}
scripts=$(dirname "$0")
mkdir -p "$run"
if [ ! -e "$run/teller/adapter" ]; then
  python "$scripts/tinystories.py" "$tiny/train_cased.txt" "$tiny/train_lowercase.txt" --out "$run/tiny.jsonl"
  python "$scripts/story_requests.py" "$run/tiny.jsonl" --count 700 --seed 1 --out "$run/requests.jsonl"
  python "$scripts/finetune_lora.py" --data "$run/requests.jsonl" --out "$run/teller" --validation 0.02 --dtype bf16 \
    --length 512 --batch 4 --lr 5e-4 --seed 1 --save-every 25 $([ -e "$run/teller/latest" ] && echo --resume || true)
fi
asking=()
for seed in 1 2; do  # a process a core: so one's sampling doesn't make the other's products wait
  OMP_NUM_THREADS=1 python "$scripts/ask_for_stories.py" "$run/tiny.jsonl" --adapter "$run/teller/adapter" --count 3700 \
    --batch 96 --max-tokens 300 --seed "$seed" --out "$run/asked$seed.jsonl" &
  asking+=($!)
done
for process in "${asking[@]}"; do wait "$process"; done
if [ ! -e "$run/data/shards.json" ]; then
  python "$scripts/write_stories.py" --count 30000 --seed 1 --out "$run/made.jsonl"
  text=("$run/tiny.jsonl" "$run/made.jsonl" "$run/asked1.jsonl" "$run/asked2.jsonl")
  python "$scripts/train_tokenizer.py" "${text[@]}" --size 2048 --out "$run/tokenizer"
  python "$scripts/prepare_data.py" "${text[@]}" --clean gopher --near 0.8 --tokenizer "$run/tokenizer" --out "$run/data" \
    --validation 0.01
fi
how=(--dim 192 --layers 6 --heads 6 --kv-heads 2 --length 256 --batch 16 --dtype bf16 --seed 1 --save-every 200 --validate-every 200)
if [ ! -e "$run/training/step_3600" ]; then
  resume=$([ -e "$run/training/latest" ] && echo --resume || true)
  python "$scripts/pretrain.py" "$run/data" --out "$run/training" "${how[@]}" --steps 3600 --warmup 100 --lr 3e-3 \
    --sample-every 400 $resume
fi
if [ ! -e "$run/more/shards.json" ]; then
  python "$scripts/write_stories.py" --count 10000 --seed 2 --out "$run/more.jsonl"
  python "$scripts/prepare_data.py" "$run/more.jsonl" --tokenizer "$run/tokenizer" --out "$run/more" --validation 0.02
fi
resume=$([ -e "$run/ending/latest" ] && echo --resume || echo --weights "$run/training/step_3600")
python "$scripts/pretrain.py" "$run/more" --out "$run/ending" "${how[@]}" --steps 480 --warmup 20 --lr 1e-3 $resume
python -m llama3_scratch.convert "$run/ending/model" "$run/storyteller" --to meta --dtype bfloat16
python "$scripts/tell_stories.py" "$run/storyteller" --text "$run"/{tiny,made,asked1,asked2,more}.jsonl
