# Sourced by the other scripts: where the project is, and what they share.
# shellcheck shell=bash

PROJECT=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${RPG_VENV:-$PROJECT/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV

# One line on stderr and the exit status: fail STATUS MESSAGE
fail() {
    echo "$(basename "$0"): $2" >&2
    exit "$1"
}

# The Python that runs the project: the environment made by environment.sh, else the user's own.
project_python() {
    if [ -x "$VENV/bin/python" ]; then
        echo "$VENV/bin/python"
    else
        echo "${PYTHON:-python3}"
    fi
}

# A configuration file, as given or relative to the project: find_config FILE
find_config() {
    if [ -f "$1" ]; then
        echo "$1"
    elif [ -f "$PROJECT/$1" ]; then
        echo "$PROJECT/$1"
    else
        fail 2 "no configuration file $1, neither here nor in $PROJECT"
    fi
}
