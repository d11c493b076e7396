"""Comparisons whose runs only pretend, or take milliseconds, for the tests of tests/compare."""

import subprocess

from doors import command, environment
from rpg_ms.compare.grid import parse_entry, plan
from rpg_ms.compare.results import collect
from rpg_ms.compare.running import run_missing

# A network of one layer, whose steps take milliseconds. With KILL set to a run's folder name it kills the
# comparison and all it started once the run has written its second checkpoint.
NETWORK = """
import os, signal, sys
from mindspore import nn
from rpg_ms.training.checkpoint import Checkpoints

def build_net():
    return nn.SequentialCell(nn.Flatten(), nn.Dense(784, 10))

if os.path.basename(sys.argv[-1]) == os.environ.get("KILL"):
    honest = Checkpoints.save

    def save(self, *args):
        honest(self, *args)
        if len(self._newest_first()) > 1:
            os.killpg(0, signal.SIGKILL)

    Checkpoints.save = save
"""
CONFIG = """
model: {name: "tinynet:build_net"}
data: {name: fashion_mnist, limit: 256, augment: none}
train: {epochs: 1, batch_size: 16, log_every: 4}
pruning: {method: rpg, update_every: 3, prune_until: 0.6, freeze_after: 0.7}
checkpoint: {every_steps: 4}
device_target: CPU
"""

# In place of `rpg-ms train`: runs the code in TROUBLE, then is finished, top-1 70 + seed.
FAKE = """
import argparse, json, os, signal, sys, time
from pathlib import Path
from rpg_ms.config import add_shared_arguments, dump_config, load_config
del sys.argv[1]
parser = argparse.ArgumentParser()
add_shared_arguments(parser)
parser.add_argument("--resume", choices=["auto"], required=True)
args = parser.parse_args()
folder = Path(args.output_dir)
config = load_config(args.config, args.set, seed=args.seed, output_dir=args.output_dir)
(folder / "config.yaml").write_text(dump_config(config))
print("at work on", folder.name)
exec(os.environ.get("TROUBLE", ""))
summary = {"top1": 70 + args.seed, "density": 0.2, "nonzero": 2, "prunable": 10, "steps": 4, "seconds": 60.0}
(folder / "summary.json").write_text(json.dumps(summary))
"""


def planned(*methods, seeds=(0,), settings=()):
    return plan("a.yaml", [parse_entry(method) for method in methods], [0.2], seeds, "runs", settings)


def run_fakes(runs):
    documents = []
    failures, stopped_by = run_missing(
        runs, "runs", lambda failures: documents.append(collect(runs, failures, "rpg-ms compare", "a.yaml", []))
    )
    assert stopped_by is None
    return failures, documents


def fake_command(*methods):
    return command("compare", "--config", "a.yaml", "--densities", "0.2", "--output_dir", "runs", "--methods", *methods)


def compare_fakes(*methods, **variables):
    return in_a_group_of_its_own(fake_command(*methods), ".", variables)


def in_a_group_of_its_own(line, cwd, variables):
    return subprocess.run(
        line, cwd=cwd, env=environment(**variables), start_new_session=True, capture_output=True, text=True, timeout=120
    )
