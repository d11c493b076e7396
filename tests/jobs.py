"""Jobs of several processes, as scripts/run_distribute_train.sh starts them."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from conftest import PROJECT


def start(*command, cwd, **environment):
    """A process of its own session; `mark` is in the environment of everything it starts."""
    mark = f"MARK=rpg-{uuid.uuid4().hex}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NODE_", "MASTER_", "RANK_"))}
    environment = {
        **clean,
        "PYTHON": sys.executable,
        "RPG_VENV": "/nowhere",
        "OMP_NUM_THREADS": "1",
        "MARK": mark[5:],
        **environment,
    }
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    process.mark = mark
    return process


def marked(process, *more):
    """The living processes of a job that have all of `more` in their environment or command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "environ").read_bytes() + b"\0" + (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        words = text.decode(errors="replace").split("\0")
        if all(word in words for word in (process.mark, *more)) and state != "Z":
            found.append(int(folder.name))
    return found


def finish(process, timeout=120):
    """`(status, stdout, stderr)`; nothing of the job may be left, and nothing is left if it hangs."""
    try:
        out, err = process.communicate(timeout=timeout)
        deadline = time.monotonic() + 5
        while marked(process) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = marked(process)
        assert not left, f"left behind: {left}"
        return process.returncode, out, err
    finally:
        for pid in marked(process):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition, process, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def copied(project, train):
    """A folder like the project's, but with a train.py of a test's own: the launcher runs that which is beside it."""
    shutil.copytree(PROJECT / "scripts", project / "scripts")
    for name in ("rpg_ms", "config"):
        (project / name).symlink_to(PROJECT / name)
    (project / "train.py").write_text(train)
    return project


def launch(project, config, ranks, *arguments, cwd, **environment):
    """The launcher of a project, on this machine's CPU; a process as of `start`."""
    script = project / "scripts/run_distribute_train.sh"
    return start("bash", script, config, ranks, "--device_target", "CPU", *arguments, cwd=cwd, **environment)
