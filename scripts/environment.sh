#!/usr/bin/env bash
# Make the project's Python environment, once; sourced by quickstart.sh and test.sh.
#   bash scripts/environment.sh
# PYTHON    the Python to make it with; by default one on PATH that has MindSpore, else any supported one.
#           A MindSpore it already has (an Ascend machine's own) is kept and used.
# RPG_VENV  the environment's folder, by default .venv in the project. An environment not made by this script
#           is used if it has everything, and never changed.
# A failure is one line on stderr and status 1; pip's output is in a log beside the folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Marks a folder that may be deleted and made again; says what it was made from once it is complete.
MARK=$VENV/made-by-rpg-ms
LOG=$VENV.log
base='' mindspore='' lacking='' packages=''

# Sets base (version and prefix), mindspore (its version if in range), lacking (requirements) and packages
# (the folder of a virtual environment's). If the Python is unsupported: status 1, and base says why.
# Usage: inspect_python PYTHON
inspect_python() {
    local report status=0
    report=$("$1" "$PROJECT/scripts/inspect_python.py" 2>/dev/null) || status=1
    { read -r base; read -r mindspore; read -r lacking; read -r packages; } <<<"$report"$'\n\n\n' || true
    base=${base:-cannot be run}
    return $status
}

# Sets python, base and mindspore.
choose_python() {
    local candidates=(python3.11 python3.10 python3.12 python3.9 python3 python) usable=
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        inspect_python "$python" || continue
        usable=${usable:-$python}
        [ -z "$mindspore" ] || return 0
    done
    [ -n "$usable" ] || [ -z "${PYTHON:-}" ] || fail 1 "PYTHON=$PYTHON $base"
    [ -n "$usable" ] || fail 1 "no usable Python on PATH, MindSpore needs 3.9 to 3.12; set PYTHON to one"
    python=$usable
    inspect_python "$python"
}

made_here() { [ -e "$MARK" ] || [ -z "$(ls -A "$VENV" 2>/dev/null)" ]; }

# True if the environment is complete, has all that pyproject.toml asks for, and comes from $PYTHON, if set.
ready() {
    local made_with
    [ -x "$VENV/bin/python" ] && inspect_python "$VENV/bin/python" && [ -z "$lacking" ] || return 1
    made_with=$base
    made_here || return 0
    [ "$(cat "$MARK")" = "$made_with $PROJECT $VENV" ] || return 1
    [ -z "${PYTHON:-}" ] || { choose_python && [ "$base" = "$made_with" ]; }
}

make_environment() {
    local needed=4500 free venv=(-m venv) keep=()
    made_here ||
        fail 1 "$VENV was not made by this script and lacks ${lacking:-a supported Python}; change RPG_VENV"
    choose_python
    if [ -n "$mindspore" ]; then needed=1000 venv+=(--system-site-packages) keep=("mindspore==$mindspore"); fi
    rm -rf "$VENV"
    free=$(df -Pk "$(dirname "$VENV")" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge "$needed" ] ||
        fail 1 "too little disk space for $VENV (RPG_VENV moves it): $free MB free, $needed MB needed"
    trap 'rm -rf "$VENV"' EXIT
    echo "making $VENV with $(command -v "$python"), once, in a few minutes; log: $LOG"
    mkdir -p "$VENV/tmp"
    touch "$MARK"
    "$python" "${venv[@]}" "$VENV" >"$LOG" 2>&1 ||
        fail 1 "$python cannot make a virtual environment; log: $LOG"
    # --system-site-packages are the base Python's, not those of a virtual environment that it is called from.
    [ -z "$mindspore" ] || [ -z "$packages" ] ||
        echo "$packages" >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
    TMPDIR=$VENV/tmp PIP_USER=0 "$VENV/bin/python" -m pip install --no-input --editable "${PROJECT}[test]" \
        ${keep[@]+"${keep[@]}"} >>"$LOG" 2>&1 ||
        fail 1 "pip failed (it needs a network): $(sed -n 's/^ *ERROR: *//p' "$LOG" | tail -n 1); log: $LOG"
    rm -rf "$VENV/tmp"
    inspect_python "$VENV/bin/python"
    echo "$base $PROJECT $VENV" >"$MARK"
    trap - EXIT
}

if ! ready; then
    { mkdir -p "$(dirname "$VENV")" && touch "$VENV.lock"; } 2>/dev/null ||
        fail 1 "cannot write to $(dirname "$VENV")"
    (
        if command -v flock >/dev/null; then flock 9; fi
        ready || make_environment
    ) 9>"$VENV.lock" || exit 1
fi
