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
# Node 0 shows the log of rank 0. When a rank fails, and on Ctrl-C, every process of this node ends; the end
# of the failed rank's log is shown and its exit status returned. SIGTERM is passed on to the ranks; a second
# one ends everything.
# Uses the project's .venv if there is one, otherwise $PYTHON or python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="usage: run_distribute_train.sh [CONFIG] [DEVICES] [train.py arguments ...]"

# ------------------------------------------------------------------------------------------ arguments

config=config/resnet50_imagenet_98.yaml devices=
if [[ $# -ge 1 && $1 != -* ]]; then config=$1; shift; fi
if [[ $# -ge 1 && $1 != -* ]]; then devices=$1; shift; fi
[[ $devices =~ ^([1-9][0-9]*)?$ ]] || fail 2 "DEVICES: '$devices' is not a number; $usage"
config=$(find_config "$config")
python=$(project_python)

target=Ascend rank_table=${RANK_TABLE_FILE:-} arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --device_target | --rank_table_file) [ $# -ge 2 ] || fail 2 "$1 needs a value; $usage" ;;&
        --device_target) target=$2; shift ;;
        --device_target=*) target=${1#*=} ;;
        --rank_table_file) rank_table=$2; shift ;;
        --rank_table_file=*) rank_table=${1#*=} ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
arguments+=(--device_target "$target")
rank_table=${rank_table/#~\//$HOME/}  # in --rank_table_file=~/FILE the shell leaves it
[ -z "$rank_table" ] || [ -f "$rank_table" ] || fail 2 "RANK_TABLE_FILE: no file $rank_table"

# Mistakes in the configuration, and data that is not there, are better told once than by every rank.
PYTHONPATH=$PROJECT${PYTHONPATH:+:$PYTHONPATH} \
    "$python" - --config "$config" "${arguments[@]}" <<'PYTHON' || exit
import sys
from rpg_ms.config import OneLineParser, add_shared_arguments, load_config
from rpg_ms.errors import UserError, front_door

def main():
    parser = OneLineParser(prog="run_distribute_train.sh")
    add_shared_arguments(parser)
    args, _ = parser.parse_known_args()
    config = load_config(args.config, args.set, seed=args.seed, device_target=args.device_target,
                         output_dir=args.output_dir)
    if config.data.name == "imagenet" and config.data.root is None:
        raise UserError(f"{args.config}: data.root is not set: give the folder of ImageNet (train/ and val/ "
                        "below it, one folder a class in each) with --set data.root=FOLDER, or in the file")

sys.argv[0] = "run_distribute_train.sh"
front_door(main)
PYTHON

count_devices() {
    local visible=
    case $target in
        Ascend) visible=${ASCEND_RT_VISIBLE_DEVICES:-} ;;
        GPU) visible=${CUDA_VISIBLE_DEVICES:-} ;;
        CPU) fail 2 "on CPU give the number of processes as DEVICES; $usage" ;;
        *) fail 2 "--device_target: $target is not one of Ascend, GPU, CPU" ;;
    esac
    if [ -n "$visible" ]; then
        tr ',' '\n' <<<"$visible" | grep -c .
    elif [ "$target" = GPU ]; then
        { nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true
    elif compgen -G '/dev/davinci[0-9]*' >/dev/null; then
        compgen -G '/dev/davinci[0-9]*' | grep -c .
    else
        { npu-smi info -l 2>/dev/null || true; } | awk -F: '/Chip Count/ { n += $2 } END { print n + 0 }'
    fi
}
devices=${devices:-$(count_devices)}
[ "$devices" -gt 0 ] || fail 2 "no $target device found; elsewhere: --device_target GPU, or CPU and DEVICES"

nodes=${NODE_COUNT:-1} node=${NODE_RANK:-0} address=${MASTER_ADDR:-127.0.0.1} port=${MASTER_PORT:-8118}
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail 2 "NODE_COUNT: '$nodes' is not a number of nodes"
[[ $node =~ ^[0-9]+$ && $node -lt $nodes ]] || fail 2 "NODE_RANK: '$node' is not in 0 to $((nodes - 1))"
if [ "$nodes" -gt 1 ]; then
    [ -n "${NODE_RANK:-}" ] || fail 2 "NODE_RANK: not set; it is this node's number, 0 to $((nodes - 1))"
    [ -n "${MASTER_ADDR:-}" ] || fail 2 "MASTER_ADDR: not set; it is the address of node 0"
elif [ -z "${MASTER_PORT:-}" ]; then
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi

# -------------------------------------------------------------------------------------------- the job

log_dir=${LOG_DIR:-msrun_log/$(date +%Y%m%d-%H%M%S)}
mkdir -p "$log_dir" 2>/dev/null || fail 2 "LOG_DIR: $log_dir cannot be made"
job=$(mktemp -d)
msrun=''

# Workers have sessions of their own and children that outlive them, so a process is known by its environment.
end_job() {
    local pids
    trap '' HUP INT TERM
    pids=$(grep -lsz "^RPG_JOB=$job$" /proc/[0-9]*/environ | cut -d/ -f3) || true
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$job"
}
end_ranks() {
    trap 'exit 143' TERM
    [ "$(grep -c . "$job/ranks" 2>/dev/null)" = "$devices" ] || exit 143  # no rank has done anything yet
    kill -TERM $(cat "$job/ranks") 2>/dev/null || true
}
trap end_job EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap end_ranks TERM

# msrun starts whatever is called python; this one keeps note of the ranks and of those that fail.
cat >"$job/python" <<EOF
#!/usr/bin/env bash
trap : TERM
$(printf %q "$(command -v "$python")") "\$@" &
[ "\$MS_ROLE" = MS_SCHED ] || echo \$! >>"$job/ranks"
status=0
wait \$! || status=\$?
# A signal to this shell ends the wait, not the rank.
while kill -0 \$! 2>/dev/null; do status=0; wait \$! || status=\$?; done
[ \$status = 0 ] || echo "\${MS_ROLE#MS_} \$RANK_ID \$status" >>"$job/failed"
exit \$status
EOF
chmod +x "$job/python"

RPG_JOB=$job PATH=$job:$PATH PYTHONUNBUFFERED=1 "$python" -m mindspore.parallel.cluster.run \
    --worker_num $((nodes * devices)) --local_worker_num "$devices" --node_rank "$node" \
    --master_addr "$address" --master_port "$port" ${rank_table:+--rank_table_file "$rank_table"} \
    --log_dir "$log_dir" --join True --tail_worker_log $((nodes * devices)) \
    "$PROJECT/train.py" --config "$config" "${arguments[@]}" >"$log_dir/msrun.log" 2>&1 &
msrun=$!
echo "$devices processes on this node, $((nodes * devices)) in all; logs: $log_dir" >&2
shown=''
if [ "$node" = 0 ]; then  # MindSpore's own notes are left in the file
    touch "$log_dir/worker_0.log"
    RPG_JOB=$job tail -n +1 -f -s 0.2 --pid $msrun "$log_dir/worker_0.log" |
        { RPG_JOB=$job exec grep -a --line-buffered -v '^\[INFO\]' || true; } &
    shown=$!
fi

while kill -0 $msrun 2>/dev/null && [ ! -s "$job/failed" ]; do sleep 0.3; done

if [ -s "$job/failed" ]; then
    sleep 0.5  # rank 0's last lines
    read -r role rank status <"$job/failed"
    log=$log_dir/worker_$rank.log name="rank $rank"
    [ "$role" = WORKER ] || { log=$log_dir/scheduler.log; name="the scheduler"; }
    message=$(grep -a '^train.py: error: ' "$log" | tail -n 1) || true
    # A user's mistake, or a checkpoint after SIGTERM: one line says it all.
    [[ ! $status =~ ^(2|143)$ || -z $message ]] || fail "$status" "$name: ${message#train.py: error: }"
    echo "$name failed with status $status; the end of $log:" >&2
    tail -n 20 "$log" >&2
    fail "$status" "$name failed with status $status, all processes ended; logs: $log_dir"
fi
[ -z "$shown" ] || wait $shown || true
status=0
wait $msrun || status=$?
[ $status = 0 ] || { tail -n 20 "$log_dir/msrun.log" >&2; fail $status "msrun failed; logs: $log_dir"; }
