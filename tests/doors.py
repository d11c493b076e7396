"""Runs the commands as a user does: in processes of their own, from another folder."""

import json
import os
import subprocess
import sys

from conftest import PROJECT

TINY = """
model: {name: cifar_resnet8}
data: {name: fashion_mnist, limit: 1024, augment: none}
train: {epochs: 3, batch_size: 64, log_every: 4, eval_batch_size: 256}
optimizer: {lr: 0.1}
schedule: {warmup_epochs: 0.5}
pruning: {method: rpg, density: 0.2, update_every: 3, prune_until: 0.6, freeze_after: 0.7, alpha: 0.3}
rank: {lambda: 0.5, delta: 0.1}
device_target: CPU
"""
STEPS = 3 * (1024 // 64)

# Ends the process by SIGKILL at the n-th call of a function, before or after it did its work.
KILLER = """
import importlib, os, runpy, signal, sys
module, name, when, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
sys.path.insert(0, os.path.dirname(sys.argv[5]))
sys.argv = sys.argv[5:]
import rpg_ms
module = importlib.import_module(module)
honest = getattr(module, name)
calls = 0
def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls == count and when == "before":
        os.kill(os.getpid(), signal.{signal})
    result = honest(*args, **kwargs)
    if calls == count and when == "after":
        os.kill(os.getpid(), signal.{signal})
    return result
setattr(module, name, deadly)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(name, *arguments):
    """The command line of a door: a script of the project (`train.py`), or the name of a command (`compare`)."""
    program = [str(PROJECT / name)] if name.endswith(".py") else ["-m", "rpg_ms", name]
    return [sys.executable, *program, *map(str, arguments)]


def environment(**more):
    """The environment of a door: `python -m rpg_ms` finds the package from any folder, as where it is installed."""
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def door(name, *arguments, cwd, timeout=300, **variables):
    """Run a door, named as for `command`; returns the CompletedProcess."""
    return _run(command(name, *arguments), cwd, timeout, variables)


def killed_door(at, name, *arguments, cwd, signal="SIGKILL", timeout=300):
    """Run a script of the project that is sent a signal at a call: `at` is "module function before|after count"."""
    return _run(
        [sys.executable, "-c", KILLER.replace("{signal}", signal), *at.split(), *command(name, *arguments)[1:]],
        cwd,
        timeout,
        {},
    )


def _run(line, cwd, timeout, variables):
    return subprocess.run(line, cwd=cwd, timeout=timeout, env=environment(**variables), capture_output=True, text=True)


def last_json(result):
    """The JSON object in the last line of a door that must have succeeded."""
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


def refused(result, *words, status=2):
    """Assert a user's mistake: its status, one line on stderr that has all the words, no traceback."""
    assert result.returncode == status, result.stderr[-2000:]
    assert result.stderr.count("\n") == 1, result.stderr[-2000:]
    for word in words:
        assert word in result.stderr, result.stderr
