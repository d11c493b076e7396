"""Training on many devices: what MindSpore's msrun leaves to others. scripts/run_distribute_train.sh runs it.

msrun starts the scheduler and this node's ranks, with their environment and logs. Waiting for them it hides which
rank failed and with what status, and it leaves their children running, so the waiting is done here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, Optional, Union

import psutil

from rpg_ms.config import OneLineParser
from rpg_ms.errors import RunStopped, UserError, front_door

PR_SET_CHILD_SUBREAPER = 36  # Linux's prctl: the orphans among a process's descendants become its children
LISTINGS = {
    "Ascend": ("ASCEND_RT_VISIBLE_DEVICES", "ls -1d /dev/davinci[0-9]*", "/dev/davinci"),
    "GPU": ("CUDA_VISIBLE_DEVICES", "nvidia-smi -L", "GPU "),
}


def main() -> None:
    script, *arguments = sys.argv[1:]
    sys.argv[0] = "run_distribute_train.sh"
    sys.argv[1:] = msrun_arguments(script, *arguments)
    logs = Path(os.environ.get("LOG_DIR") or time.strftime("msrun_log/%Y%m%d-%H%M%S"))
    logs.mkdir(parents=True, exist_ok=True)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for signum in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(signum, leave)
    told = f"{os.path.basename(script)}: error: "
    try:
        processes = start(logs)
        failed = watch(processes, logs, (b"[INFO]", told.encode()))  # MindSpore's notes, and what is told at the end
    finally:
        end_everything()
    if failed:
        report(logs / f"{failed[0]}.log", processes[failed[0]].returncode, told)


def msrun_arguments(script: str, config: str, devices: str, *arguments: str) -> list[str]:
    """What msrun is called with, by the arguments and the environment of scripts/run_distribute_train.sh."""
    parser = OneLineParser(usage="%(prog)s [CONFIG] [DEVICES] [train.py arguments ...]", allow_abbrev=False)
    parser.add_argument("--device_target", default="Ascend")
    parser.add_argument("--rank_table_file", default=os.environ.get("RANK_TABLE_FILE") or "")
    own, arguments = parser.parse_known_args(arguments)
    if own.rank_table_file and not os.path.isfile(own.rank_table_file):
        raise UserError(f"RANK_TABLE_FILE: no file {own.rank_table_file}")
    devices = number("DEVICES", devices or count_devices(own.device_target), 1, 9999)
    nodes = number("NODE_COUNT", os.environ.get("NODE_COUNT") or 1, 1, 9999)
    node = number("NODE_RANK", os.environ.get("NODE_RANK") or ("not set" if nodes > 1 else 0), 0, nodes - 1)
    address = os.environ.get("MASTER_ADDR")
    if nodes > 1 and not address:
        raise UserError("MASTER_ADDR: not set; it is the address of node 0")
    with socket.create_server(("", 0)) as probe:
        free_port = probe.getsockname()[1]
    port = number("MASTER_PORT", os.environ.get("MASTER_PORT") or (8118 if nodes > 1 else free_port), 1, 65535)
    folder, python = os.path.split(sys.executable)
    if python not in ("python", "python3"):
        raise UserError(f"PYTHON: msrun calls Python `python` or `python3`, not {sys.executable}")
    os.environ.update(PATH=f"{folder}:{os.environ.get('PATH', os.defpath)}", PYTHONUNBUFFERED="1")
    options = {
        "--worker_num": nodes * devices,
        "--local_worker_num": devices,
        "--node_rank": node,
        "--master_addr": address or "127.0.0.1",
        "--master_port": port,
        "--rank_table_file": own.rank_table_file,
    }
    words = [str(word) for option in options.items() for word in option]
    return [*words, python, script, "--config", config, *arguments, "--device_target", own.device_target]


def number(name: str, text: Union[str, int], low: int, high: int) -> int:
    if not (str(text).isdecimal() and low <= int(text) <= high):
        raise UserError(f"{name}: {str(text)!r} is not a number from {low} to {high}")
    return int(text)


def count_devices(target: str) -> int:
    """The devices of this machine, or those that the environment makes visible."""
    if target not in LISTINGS:
        raise UserError(f"DEVICES: not given; on {target} it is the number of processes")
    variable, command, beginning = LISTINGS[target]
    if os.environ.get(variable):
        return len(os.environ[variable].split(","))
    found = [line for line in subprocess.getoutput(command).splitlines() if line.startswith(beginning)]
    if not found:
        raise UserError(f"no {target} device found; elsewhere: --device_target GPU, or CPU and DEVICES")
    return len(found)


def start(logs: Path) -> dict[str, subprocess.Popen]:
    """Have msrun start what sys.argv says: `{name of its log: Popen}`, on node 0 with the scheduler."""
    with open(logs / "msrun.log", "w", encoding="utf-8") as log, redirect_stdout(log):
        from mindspore.parallel.cluster.process_entity import _ProcessManager
        from mindspore.parallel.cluster.run import get_args

        args = get_args()
        args.log_dir = str(logs)
        try:
            manager = _ProcessManager(args)
        except RuntimeError as error:
            raise UserError(f"MASTER_ADDR: {args.master_addr}: {error}") from None
        manager.run()

    def pass_on(*_: object) -> None:
        signal.signal(signal.SIGTERM, leave)
        for rank in manager.cgn_processes:
            rank.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    print(f"{args.local_worker_num} processes on this node, {args.worker_num} in all; logs: {logs}", file=sys.stderr)
    first = args.node_rank * args.local_worker_num
    processes = {f"worker_{first + index}": rank for index, rank in enumerate(manager.cgn_processes)}
    return {**processes, "scheduler": manager.msn_process} if manager.msn_process else processes


def leave(signum: int, _: Optional[FrameType]) -> NoReturn:
    raise SystemExit(128 + signum)


def watch(processes: Mapping[str, subprocess.Popen], logs: Path, hidden: tuple[bytes, ...]) -> list[str]:
    """Show rank 0's log, where it is here, until all processes have ended, or some have failed: their names."""
    with open(logs / "worker_0.log" if "worker_0" in processes else os.devnull, "rb") as log:
        rest = b""
        while True:
            running = [process for process in processes.values() if process.poll() is None]
            *lines, rest = (rest + log.read()).split(b"\n")  # the last line may not be complete yet
            for line in lines:
                if not line.startswith(hidden):
                    with suppress(OSError):  # where nobody reads any more the run goes on
                        os.write(1, line + b"\n")
            failed = [name for name, process in processes.items() if process.returncode]
            if failed or not running:
                return failed
            time.sleep(0.1)


def end_everything() -> None:
    """Kill every descendant, also in another session: the children of each that ends become this process's."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    while children := psutil.Process().children():
        for child in children:
            child.kill()
        psutil.wait_procs(children, timeout=5)


def report(log: Path, status: int, mark: str) -> NoReturn:
    """Raise RunStopped with the failed process's own error line; where it left none, show the end of its log."""
    name = log.stem.replace("worker_", "rank ").replace("scheduler", "the scheduler")
    status = status if status > 0 else 128 - status  # of a process that a signal ended, as a shell tells it
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line[len(mark) :] for line in lines if line.startswith(mark)]
    if not told and status != 128 + signal.SIGTERM:
        print(f"{name} failed with status {status}; the end of {log}:", *lines[-20:], sep="\n", file=sys.stderr)
    said = f": {told[-1]}" if told else f" failed with status {status}, all processes ended; logs: {log.parent}"
    raise RunStopped(name + said, status)


if __name__ == "__main__":
    front_door(main)
