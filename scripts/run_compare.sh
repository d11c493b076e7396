#!/usr/bin/env bash
# Compare pruning methods: run what is missing, write tables and figures.
#   bash scripts/run_compare.sh CONFIG --methods METHOD ... --densities D ... [rpg-ms compare arguments ...]
# Safe to run again: finished runs are not repeated, those that were cut off go on.
# Uses the project's .venv if there is one, otherwise $PYTHON or python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 1 && $1 != -* ]] ||
    fail 2 "usage: run_compare.sh CONFIG --methods METHOD ... --densities D ... [rpg-ms compare arguments ...]"
config=$(find_config "$1")
shift
export PYTHONPATH=$PROJECT${PYTHONPATH:+:$PYTHONPATH}
exec "$(project_python)" -m rpg_ms compare --config "$config" "$@"
