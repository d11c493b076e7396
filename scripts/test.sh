#!/usr/bin/env bash
# Run the tests, making the environment first where needed.
#   bash scripts/test.sh [pytest arguments ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

cd "$PROJECT"
exec "$VENV/bin/python" -m pytest "$@"
