import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import PROJECT
from rpg_ms.data.pipeline import batches
from rpg_ms.data.workers import Workers
from rpg_ms.errors import CutShort

BATCH = 4


class Samples:
    """Images of 0.5 MB, so that few batches wait in a socket; with `lethal`, the worker that makes it kills itself."""

    def __init__(self, count, lethal=None):
        self.count = count
        self.lethal = lethal

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i == self.lethal:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": np.full((1, 362, 362), i, np.float32), "label": np.int32(i)}


def test_a_dead_worker_is_an_error_of_one_line_and_what_was_made_before_is_kept():
    seen = []
    with pytest.raises(CutShort, match=r"data\.workers: worker \d+, of 2, is dead \(SIGKILL\); .*memory") as error:
        for batch in batches(Samples(80, lethal=5 * BATCH), BATCH, 2):
            seen += batch["label"].asnumpy().tolist()
    assert seen == list(range(5 * BATCH)) and error.value.status == 1
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_while_it_waits():
    made = batches(Samples(4000), BATCH, 2)
    next(made)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(CutShort, match="is dead"):
        list(made)


def test_workers_end_with_the_iterator_and_leave_signals_to_the_parent():
    made = batches(Samples(4000), BATCH, 2)
    next(made)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(workers[0].pid, number)
    for _ in range(50):  # more than wait in the sockets
        next(made)
    made.close()
    assert not multiprocessing.active_children()


def test_workers_end_when_the_parent_is_killed(tmp_path):
    code = (
        "import sys, os, multiprocessing; sys.path[:0] = sys.argv[1:]\n"
        "from test_workers import Samples, batches\n"
        "made = batches(Samples(4000), 4, 2); next(made)\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(PROJECT), str(PROJECT / "tests"), str(PROJECT / "tests/data")],
        stdout=subprocess.PIPE,
        timeout=100,
        text=True,
    )
    workers = [int(pid) for pid in result.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_shared_memory_is_needed():
    """As in a container, where batches did not fit into /dev/shm."""
    tiny = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64k none /dev/shm && exec "$0" "$@"']
    if subprocess.run([*tiny, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no mount namespaces here")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_workers import Samples, batches\n"
        "print(sum(batch['label'].asnumpy().sum() for batch in batches(Samples(40), 4, 2)))"
    )
    result = subprocess.run(
        [*tiny, sys.executable, "-c", code, str(PROJECT), str(PROJECT / "tests"), str(PROJECT / "tests/data")],
        stdout=subprocess.PIPE,
        timeout=100,
        text=True,
    )
    assert result.stdout == f"{sum(range(40))}\n"


def test_a_process_that_cannot_be_started(monkeypatch):
    def refuse():
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(CutShort, match="data.workers: worker 1 of 2 cannot be started: Resource temporarily"):
        Workers([], 2)
