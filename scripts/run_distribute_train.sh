#!/usr/bin/env bash
# Train on many devices, one process each, started by MindSpore's msrun.
#   bash scripts/run_distribute_train.sh [CONFIG] [DEVICES] [train.py arguments ...]
# CONFIG is config/resnet50_imagenet_98.yaml if not given, DEVICES (on this node) all there are.
# The device is Ascend; --device_target GPU or CPU takes others (on CPU, DEVICES is the number of processes).
#   NODE_COUNT   nodes, by default 1; the script is started once on each, with the same arguments
#   NODE_RANK    this node's number, from 0
#   MASTER_ADDR  address of node 0, the same on every node
#   MASTER_PORT  a free port of node 0, the same on every node; by default 8118, on a single node a free one
#   RANK_TABLE_FILE, or --rank_table_file PATH   rank table, for clusters that need one
#   LOG_DIR      where each process's log goes, by default msrun_log/TIME
# Node 0 shows the log of rank 0. When a rank fails, and on Ctrl-C, every process of this node ends; the failed
# rank's error line, or else the end of its log, is shown and its exit status returned. SIGTERM is passed on to
# the ranks; a second one ends everything.
# Uses the project's .venv if there is one, otherwise $PYTHON or python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

config=config/resnet50_imagenet_98.yaml devices=
if [[ $# -ge 1 && $1 != -* ]]; then config=$1; shift; fi
if [[ $# -ge 1 && $1 != -* ]]; then devices=$1; shift; fi
config=$(find_config "$config")
export PYTHONPATH=$PROJECT${PYTHONPATH:+:$PYTHONPATH}
exec "$(project_python)" -m rpg_ms.training.launch "$PROJECT/train.py" "$config" "$devices" "$@" </dev/null
