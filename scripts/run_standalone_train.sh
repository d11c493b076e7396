#!/usr/bin/env bash
# Train on one device.
#   bash scripts/run_standalone_train.sh [CONFIG] [DEVICE_TARGET] [train.py arguments ...]
# CONFIG is config/quickstart.yaml if not given, DEVICE_TARGET one of auto (default), CPU, GPU, Ascend.
# Uses the project's .venv if there is one, otherwise $PYTHON or python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="usage: run_standalone_train.sh [CONFIG] [DEVICE_TARGET: auto|CPU|GPU|Ascend] [train.py arguments ...]"

config=config/quickstart.yaml device_target=auto
if [[ $# -ge 1 && $1 != -* ]]; then config=$1; shift; fi
if [[ $# -ge 1 && $1 != -* ]]; then device_target=$1; shift; fi
case $device_target in auto | CPU | GPU | Ascend) ;; *) fail 2 "$usage" ;; esac
config=$(find_config "$config")
exec "$(project_python)" "$PROJECT/train.py" --config "$config" --device_target "$device_target" "$@"
