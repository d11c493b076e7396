#!/usr/bin/env bash
# Run the tests, making the environment first where needed.
#   bash scripts/test.sh [pytest arguments ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

cd "$PROJECT"
# Two processes, a test file in one of them: most of the time goes into compiling graphs, which has one thread.
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile "$@"
