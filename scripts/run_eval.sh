#!/usr/bin/env bash
# Evaluate a checkpoint.
#   bash scripts/run_eval.sh CONFIG CHECKPOINT [eval.py arguments ...]
# Uses the project's .venv if there is one, otherwise $PYTHON or python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 2 && $1 != -* && $2 != -* ]] ||
    fail 2 "usage: run_eval.sh CONFIG CHECKPOINT [eval.py arguments ...]"
config=$(find_config "$1")
checkpoint=$2
shift 2
exec "$(project_python)" "$PROJECT/eval.py" --config "$config" --checkpoint_path "$checkpoint" "$@"
