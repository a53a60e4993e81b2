#!/usr/bin/env bash
# How models/qwen25-vl-nano-medical-lora was made: the embedded model's adapter, on all GPUs of a machine.
#
#   embedded_adapter.sh prepare ROOT MTSAMPLES PAGES SEED   pages, questions and the base in four bits under ROOT
#   embedded_adapter.sh train ROOT [finetune_lora's flags]  one process a GPU
#
# ROOT/models must hold the embedded model. MTSAMPLES is a copy of the MTSamples reports (mtsamples.csv, .jsonl, .parquet);
# BIN the folder of the programs.
set -euo pipefail

bin=${BIN:-target/release}
action=${1:?prepare or train}
root=${2:?a folder}
model=$root/models/qwen25-vl-nano

case $action in
prepare)
    "$bin/download_datasets" --root "$root" --dataset mtsamples --source "mtsamples=$3"
    "$bin/prepare_training_data" --root "$root" --clinical "$4" --seed "$5"
    # Generated pages are many, reports few: each report's page is there five times, as pages of their own.
    python3 - "$root" 5 <<'PYTHON'
import json, os, sys
root, times = sys.argv[1], int(sys.argv[2])
path = os.path.join(root, "datasets/formatted/train.json")
with open(path) as file:
    samples = json.load(file)
for sample in [sample for sample in samples if sample["source"] == "MTSamples"]:
    stem, extension = os.path.splitext(sample["image_path"])
    for copy in range(1, times):
        image = f"{stem}-{copy}{extension}"
        if not os.path.exists(os.path.join(root, image)):
            os.link(os.path.join(root, sample["image_path"]), os.path.join(root, image))
        samples.append(sample | {"image_path": image})
with open(path, "w") as file:
    json.dump(samples, file)
PYTHON
    [ -d "$model-bnb-nf4" ] || "$bin/quantize_base" --root "$root" --model qwen25-vl-nano --method nf4
    ;;
train)
    gpus=$(nvidia-smi -L | wc -l)
    pids=()
    for ((rank = 0; rank < gpus; rank++)); do
        RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$gpus MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-29500} \
            "$bin/finetune_lora" --root "$root" --model qwen25-vl-nano --device cuda \
            --target-modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,qkv,attn.proj,mlp.0,mlp.2 \
            --lora-dropout 0 --min-pixels 700000 --batch-size 128 --grad-accum-steps 1 --epochs 1000 --max-samples 10000000 --max-val-samples 500 \
            "${@:3}" &
        pids+=($!)
    done
    trap 'kill -INT "${pids[@]}" 2>/dev/null' INT TERM
    status=0
    for pid in "${pids[@]}"; do
        # Woken by a signal, wait returns before the process has ended.
        until wait "$pid"; result=$?; ! kill -0 "$pid" 2>/dev/null; do :; done
        [ "$result" = 0 ] || status=$result
    done
    exit "$status"
    ;;
*)
    echo "prepare or train, not $action" >&2
    exit 2
    ;;
esac
