#!/usr/bin/env bash
# Export a checkpoint for deployment.
#   bash scripts/run_export.sh CONFIG CHECKPOINT [FORMAT] [OUT] [export.py arguments ...]
# FORMAT is MINDIR (default) or another that `export.py --help` names; OUT the file's name, by default the checkpoint's.
# Uses the project's .venv if there is one, otherwise $PYTHON or python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 2 && $1 != -* && $2 != -* ]] ||
    fail 2 "usage: run_export.sh CONFIG CHECKPOINT [FORMAT] [OUT] [export.py arguments ...]"
config=$(find_config "$1")
checkpoint=$2 format=MINDIR out=${2%.ckpt}
shift 2
if [[ $# -ge 1 && $1 != -* ]]; then format=$1; shift; fi
if [[ $# -ge 1 && $1 != -* ]]; then out=$1; shift; fi
exec "$(project_python)" "$PROJECT/export.py" --config "$config" --checkpoint_path "$checkpoint" \
    --file_format "$format" --file_name "$out" "$@"
