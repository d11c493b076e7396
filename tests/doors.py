"""Runs the front doors as a user does: in processes of their own, from another folder."""
import json
import os
import subprocess
import sys

from conftest import PROJECT

TINY = """
model: {name: cifar_resnet8}
data: {name: fashion_mnist, limit: 512}
train: {epochs: 2, batch_size: 64, log_every: 4, eval_batch_size: 128}
optimizer: {lr: 0.1}
schedule: {warmup_epochs: 0.5}
pruning: {method: rpg, density: 0.1, update_every: 2, prune_until: 0.7, freeze_after: 0.75, alpha: 0.3}
rank: {lambda: 0.5, delta: 0.1}
device_target: CPU
"""


def door(name, *arguments, cwd, timeout=300, **environment):
    """Run train.py, eval.py or export.py; returns the CompletedProcess."""
    return subprocess.run([sys.executable, str(PROJECT / name), *map(str, arguments)], cwd=cwd, timeout=timeout,
                          env={**os.environ, **environment}, capture_output=True, text=True)


def last_json(result):
    """The JSON object in the last line of a door that must have succeeded."""
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


def refused(result, *words):
    """Assert a user's mistake: status 2, one line on stderr that has all the words, no traceback."""
    assert result.returncode == 2, result.stderr[-2000:]
    assert result.stderr.count("\n") == 1, result.stderr[-2000:]
    for word in words:
        assert word in result.stderr, result.stderr
