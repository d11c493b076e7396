#!/usr/bin/env bash
# From nothing to a trained, evaluated and exported sparse network, on the Fashion-MNIST subset shipped here.
#   bash scripts/quickstart.sh [--set key=value ...]      for example --set train.epochs=6
# Makes the environment first where needed (see environment.sh). Results go to runs/quickstart.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

cd "$PROJECT"
python=$VENV/bin/python
run=runs/quickstart
SECONDS=0
"$python" train.py --config config/quickstart.yaml --overwrite "$@" --output_dir "$run"
# The run's own configuration holds what "$@" changed.
"$python" eval.py --config "$run/config.yaml" --checkpoint_path "$run/last.ckpt"
"$python" export.py --config "$run/config.yaml" --checkpoint_path "$run/last.ckpt" \
    --file_format MINDIR --file_name "$run/model"
"$python" - "$PROJECT/$run" "$SECONDS" <<'PYTHON'
import json, sys
folder, seconds = sys.argv[1:]
summary = json.load(open(f"{folder}/summary.json"))
print(f"top-1 {summary['top1']:.2f} % at density {summary['density']:.4f}, {seconds} s after installation")
print(f"results: {folder} (config.yaml, metrics.jsonl, summary.json, last.ckpt, model.mindir)")
PYTHON
