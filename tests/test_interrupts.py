"""Ctrl-C and SIGTERM, at any time; what is imported, compiled or waited for does not matter."""

import signal
import subprocess
import sys
import time

import pytest

from conftest import PROJECT
from doors import TINY, command, environment

MINDSPORE = "_c_expression"  # its largest library, which is loaded in the middle of its import
ARGUMENTS = {
    "train.py": ["--config", "tiny.yaml", "--output_dir", "out"],
    "eval.py": ["--config", "tiny.yaml", "--checkpoint_path", "none.ckpt"],
    "export.py": ["--config", "tiny.yaml", "--checkpoint_path", "none.ckpt", "--file_name", "out"],
    "convert": ["--model", "resnet50", "--from", "none.ckpt", "--to", "out.ckpt"],
    "report": ["none", "--output_dir", "out"],
    "compare": ["--config", "tiny.yaml", "--methods", "gmp", "--densities", "0.1"],
}


def begun(folder, door, *arguments):
    (folder / "tiny.yaml").write_text(TINY)
    return subprocess.Popen(
        command(door, *ARGUMENTS[door], *arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()[-2000:]
        time.sleep(0.01)


def has_loaded(process, library):
    with open(f"/proc/{process.pid}/maps") as file:
        return library in file.read()


def ended(process, status):
    err = process.communicate(timeout=60)[1]
    assert (process.returncode, err) == (status, "")


@pytest.mark.parametrize("door", ARGUMENTS)
def test_ctrl_c_while_modules_are_imported(tmp_path, door):
    process = begun(tmp_path, door)
    wait_for(lambda: has_loaded(process, "pydantic_core" if door == "compare" else MINDSPORE), process)
    process.send_signal(signal.SIGINT)
    ended(process, 130)


def test_ctrl_c_while_training(tmp_path):
    """MindSpore puts a handler in the place of Python's while it compiles and runs a graph, which sends SIGTERM."""
    process = begun(tmp_path, "train.py", "--set", "train.epochs=1000")
    metrics = tmp_path / "out/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 3, process)
    process.send_signal(signal.SIGINT)
    ended(process, 130)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_what_does_not_answer_but_not_one_sent_twice(number):
    code = (
        "import rpg_ms.interrupts, signal, threading, sys\n"
        f"signal.signal({number:d}, lambda *_: print('heard', flush=True))\n"
        "print('ready', flush=True)\n"
        "threading.Event().wait()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "heard\n"
    process.send_signal(number)  # as `timeout` does
    assert process.stdout.readline() == "heard\n"
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(number)
    ended(process, 128 + number)


def test_an_ignored_ctrl_c_stays_ignored():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import rpg_ms.interrupts, os\n"
        "os.kill(os.getpid(), signal.SIGINT); print('alive')"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE).stdout == b"alive\n"


def test_a_library_user_keeps_the_signals_and_sees_no_noise_at_the_exit():
    code = (
        "import signal, numpy as np, mindspore as ms\n"
        "from rpg_ms.cells import sparsify\nfrom rpg_ms.models import create_model\n"
        "import rpg_ms.data.pipeline, rpg_ms.training.loop\n"
        "network = create_model('cifar_resnet8', 10, 1)\nfound = sparsify(network)\n"
        "network(ms.Tensor(np.zeros((1, 1, 28, 28)), ms.float32))\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")
