"""Many devices, as CPU processes under msrun: what the ranks agree on, and how such a run ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

import distributed_worker
from conftest import PROJECT
from doors import TINY
from rpg_ms.config import load_config
from rpg_ms.errors import UserError
from rpg_ms.tasks import create_task
from rpg_ms.training import build, checkpoint
from rpg_ms.training.distributed import ALONE, join

EVAL = """
data: {name: fashion_mnist, limit: 101}
train: {batch_size: 8, eval_batch_size: 16}
device_target: CPU
"""


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


# ---------------------------------------------------------------------------- what the ranks agree on


@pytest.fixture(scope="module", params=[(2, "graph"), (4, "pynative")], ids=["2 ranks graph", "4 ranks pynative"])
def ranks(request, tmp_path_factory):
    """What each rank of a job saw: a list of dicts."""
    size, mode = request.param
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "eval.yaml").write_text(EVAL)
    # The launcher runs PROJECT/train.py: here the worker takes its place.
    shutil.copytree(PROJECT / "scripts", folder / "project/scripts")
    (folder / "project/config").mkdir()
    (folder / "project/rpg_ms").symlink_to(PROJECT / "rpg_ms")
    (folder / "project/train.py").write_text(
        f"import sys; sys.path.insert(0, {str(PROJECT / 'tests')!r})\n"
        f"sys.argv[1:] = [{mode!r}, {str(folder)!r}]\n"
        "import distributed_worker; distributed_worker.main()\n"
    )
    process = start(
        "bash",
        folder / "project/scripts/run_distribute_train.sh",
        folder / "eval.yaml",
        size,
        "--device_target",
        "CPU",
        cwd=folder,
    )
    status, out, err = finish(process)
    assert status == 0, err[-3000:]
    assert out == "printed by rank 0\n"
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(size)]


def test_gathered_values_are_exact(ranks):
    size = len(ranks)
    every = range(size)
    expected = [
        np.array([[2**62 + rank, -1] for rank in every]),
        np.array([np.pi * (rank + 1) for rank in every]),
        np.array([[[rank == 1]] for rank in every]),
        np.float32([[-0.0, np.nan, 1e-45]] * size),
    ]
    for seen in ranks:
        assert seen["size"] == size
        assert seen["gathered"] == [value.tobytes().hex() for value in expected]


def test_different_weights_become_those_of_rank_0(ranks):
    assert len({seen["own"] for seen in ranks}) == len(ranks)
    assert {seen["broadcast"] for seen in ranks} == {ranks[0]["own"]}


def test_weights_and_masks_stay_equal_on_all_ranks(ranks):
    for seen in ranks:
        assert seen["trained"] == ranks[0]["trained"]
    assert len({str(masks) for masks in ranks[0]["trained"]["masks"]}) == 3  # dense, and two updates


def test_rank_gradients_that_differ_between_the_ranks_part_nothing(ranks):
    assert len(set(ranks[0]["other_rounding"])) == 5
    for seen in ranks:
        assert seen["other_rounding"] == ranks[0]["other_rounding"]


def test_ranks_follow_one_rank_with_the_global_batch(ranks):
    together, alone = ranks[0]["trained"], ranks[0]["alone"]
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-5)
    assert together["masks"] == alone["masks"]
    for ours, theirs in zip(together["weights"], alone["weights"]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_divergence_is_noticed_by_every_rank(ranks):
    size = len(ranks)
    assert {seen["agreed"] for seen in ranks} == {ranks[0]["trained"]["digests"][-1]}
    for seen in ranks:
        assert seen["divergence"] == (
            f"weights or masks differ between the ranks after step 6: rank 1 of {size} against rank 0"
        )


def test_ranks_that_go_on_after_different_steps_are_told(ranks):
    size = len(ranks)
    for seen in ranks:
        assert seen["other_steps"] == (
            f"steps: {', '.join(['5', '0'] + ['5'] * (size - 2))}, on ranks 0 to {size - 1}; "
            "every node must be able to read the run's folder"
        )


def test_statistics_are_averaged_and_weights_are_not(ranks):
    for rank, seen in enumerate(ranks):
        assert seen["moving_mean"] == [(len(ranks) - 1) / 2, 5.0] and seen["gamma"] == [rank, 5.0]


def test_evaluation_counts_every_image_once_at_any_size(ranks, tmp_path):
    (tmp_path / "eval.yaml").write_text(EVAL)
    alone = distributed_worker.evaluate(tmp_path / "eval.yaml", ALONE)
    assert len(alone["labels"]) == 101 and 0 < alone["top1"] < 100
    for seen in ranks:
        assert seen["evaluation"]["top1"] == alone["top1"]
        assert seen["evaluation"]["steps_per_epoch"] == 101 // (8 * len(ranks))
    assert sorted(sum((seen["evaluation"]["labels"] for seen in ranks), [])) == sorted(alone["labels"])


# ------------------------------------------------------------------------------------------ real runs

SCRIPT = PROJECT / "scripts/run_distribute_train.sh"


def test_a_run_on_two_ranks(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    process = start(
        "bash",
        SCRIPT,
        "tiny.yaml",
        "2",
        "--device_target",
        "CPU",
        "--output_dir",
        "out",
        "--set",
        "train.batch_size=64",
        "--set",
        "train.epochs=1",
        cwd=tmp_path,
        LOG_DIR="logs",
    )
    status, out, err = finish(process)
    assert status == 0, err[-3000:]
    summary = json.loads(out.splitlines()[-1])
    assert summary == json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["steps"] == 1024 // (2 * 64) and summary["nonzero"] == round(0.2 * summary["prunable"])
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "topology"] == [3]
    assert all(len(line["digest"]) == 32 for line in lines if line["event"] == "topology")
    assert [line["step"] for line in lines if line["event"] == "train"] == [4, 8]
    assert "top1" not in (tmp_path / "logs/worker_1.log").read_text()
    # The checkpoint holds what was evaluated.
    task = create_task(load_config(tmp_path / "tiny.yaml"), ALONE)
    network, found = build.build_network(task.config, task)
    checkpoint.load_network(tmp_path / "out/last.ckpt", network, found)
    assert task.evaluate(network)["top1"] == summary["top1"] and found.nonzero == summary["nonzero"]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["divergence", "SIGKILL", "SIGINT", "SIGTERM"])
def test_a_real_run_that_ends_early(tmp_path, end):
    (tmp_path / "tiny.yaml").write_text(TINY)
    shutil.copytree(PROJECT / "scripts", tmp_path / "project/scripts")
    for name in ("rpg_ms", "config"):
        (tmp_path / "project" / name).symlink_to(PROJECT / name)
    tamper = """
import os, sys
import numpy as np
sys.path.insert(0, {project!r})
from rpg_ms.pruning import pruner
honest = pruner.update_topology
def tampering(*args):
    layers = [(weight.copy(), mask) for weight, mask in honest(*args)]
    if os.environ["RANK_ID"] == "1":
        layers[0][0][layers[0][1]] *= np.float32(1.0001)
    return layers
if {divergence}:
    pruner.update_topology = tampering
import runpy
runpy.run_path({train!r}, run_name="__main__")
"""
    (tmp_path / "project/train.py").write_text(
        tamper.format(project=str(PROJECT), train=str(PROJECT / "train.py"), divergence=end == "divergence")
    )
    process = start(
        "bash",
        tmp_path / "project/scripts/run_distribute_train.sh",
        "tiny.yaml",
        "2",
        "--device_target",
        "CPU",
        "--output_dir",
        "out",
        "--set",
        "train.epochs=1000",
        cwd=tmp_path,
        LOG_DIR="logs",
    )
    metrics = tmp_path / "out/metrics.jsonl"
    if end != "divergence":
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, process)
        rank1 = marked(process, "RANK_ID=1", "MS_ROLE=MS_WORKER", str(tmp_path / "project/train.py"))
    if end == "SIGKILL":
        os.kill(rank1[0], signal.SIGKILL)
    elif end in ("SIGINT", "SIGTERM"):
        process.send_signal(getattr(signal, end))
    status, _, err = finish(process)
    if end == "divergence":
        assert status == 2 and err.count("\n") == 2, err
        assert "differ between the ranks after step 3: rank 1 of 2 against" in err
        assert not (tmp_path / "out/summary.json").exists()
    else:
        assert status == {"SIGKILL": 137, "SIGINT": 130, "SIGTERM": 143}[end], err
        assert end != "SIGKILL" or "rank 1 failed with status 137" in err
        if end == "SIGTERM":  # all ranks agreed on a step, and wrote its checkpoint
            found = re.search(r"stopped by SIGTERM after step (\d+) of", err)
            assert found and (tmp_path / f"out/checkpoints/step-{int(found[1]):09d}.ckpt").exists(), err


# ----------------------------------------------------------------------------- how a job of processes ends


@pytest.fixture
def job(tmp_path):
    """Call the launcher, with the real msrun, on a train.py of the test's own in place of the project's."""
    project = tmp_path / "a project"
    shutil.copytree(PROJECT / "scripts", project / "scripts")
    (project / "config").symlink_to(PROJECT / "config")
    (project / "rpg_ms").symlink_to(PROJECT / "rpg_ms")

    def call(train, ranks):
        (project / "train.py").write_text(
            "import os, signal, subprocess, sys, time\n"
            "rank, scheduler = os.environ['RANK_ID'], os.environ['MS_ROLE'] == 'MS_SCHED'\n"
            "if scheduler: time.sleep(1000)\n" + train
        )
        return start(
            "bash",
            project / "scripts/run_distribute_train.sh",
            "config/quickstart.yaml",
            ranks,
            "--device_target",
            "CPU",
            cwd=tmp_path,
            LOG_DIR=str(tmp_path / "logs"),
        )

    return call


# Each rank has a child in a session of its own that heeds no signal, as a data loader might.
STUBBORN = """
deaf = ("import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)")
subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
print("rank", rank, "is at work")
"""


def at_work(tmp_path, ranks):
    logs = [tmp_path / f"logs/worker_{rank}.log" for rank in range(ranks)]
    return lambda: all(log.exists() and "is at work" in log.read_text() for log in logs)


def test_a_rank_that_is_killed_ends_the_job_and_its_log_is_shown(job, tmp_path):
    process = job(STUBBORN + "time.sleep(1000)", 4)
    wait_for(at_work(tmp_path, 4), process)
    script = str(tmp_path / "a project/train.py")
    os.kill(marked(process, "RANK_ID=2", "MS_ROLE=MS_WORKER", script)[0], signal.SIGKILL)
    status, out, err = finish(process, 15)
    assert status == 137
    assert "rank 2 failed with status 137" in err and "rank 2 is at work" in err
    assert "rank 1 is at work" not in err
    assert out == "rank 0 is at work\n"


def test_ctrl_c_ends_everything(job, tmp_path):
    process = job(STUBBORN + "time.sleep(1000)", 2)
    wait_for(at_work(tmp_path, 2), process)
    assert len(marked(process)) == 6
    process.send_signal(signal.SIGINT)
    assert finish(process, 15)[0] == 130


def test_sigterm_reaches_the_ranks_first(job, tmp_path):
    process = job(
        """
def leave(*_):
    open(f"left_{rank}", "w").close()
    while not all(os.path.exists(f"left_{r}") for r in (0, 1)): time.sleep(0.05)
    raise SystemExit(75)
signal.signal(signal.SIGTERM, leave)
print("rank", rank, "is at work")
time.sleep(1000)
""",
        2,
    )
    wait_for(at_work(tmp_path, 2), process)
    process.terminate()
    assert finish(process, 15)[0] == 75
    assert (tmp_path / "left_0").exists() and (tmp_path / "left_1").exists()


def test_a_mistake_on_one_rank_is_one_line_and_status_2(job):
    status, out, err = finish(
        job(
            """
if rank == "1":
    print("train.py: error: image 7 cannot be read", file=sys.stderr)
    sys.exit(2)
time.sleep(1000)
""",
            2,
        ),
        30,
    )
    assert status == 2 and err.splitlines()[-1] == "run_distribute_train.sh: error: rank 1: image 7 cannot be read"
    assert "Traceback" not in err


def test_a_mistake_in_the_configuration_is_told_once(tmp_path):
    process = start(
        "bash",
        SCRIPT,
        "config/quickstart.yaml",
        "2",
        "--device_target",
        "CPU",
        "--set",
        "pruning.density=1.5",
        cwd=tmp_path,
    )
    status, out, err = finish(process, 30)
    assert (status, out) == (2, "")
    assert err.count("\n") == 2 and re.search(r"run_distribute_train.sh: error: rank [01]: .*pruning.density: 1.5", err)


def test_an_output_that_nobody_reads_does_not_end_the_run(job, tmp_path):
    process = job(
        """
print("rank", rank, "is at work")
while not os.path.exists("go"): time.sleep(0.1)
print("one line more")
time.sleep(1)
open(f"left_{rank}", "w").close()
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(1000)
""",
        1,
    )
    wait_for(at_work(tmp_path, 1), process)
    process.stdout.close()
    process.stdout = None
    (tmp_path / "go").touch()
    assert finish(process, 15)[0] == 143
    assert (tmp_path / "left_0").exists()


# ------------------------------------------------------------------- what the launcher asks of msrun


@pytest.fixture
def launch(tmp_path):
    """Call the launcher with an msrun that only notes its arguments: `(status, those arguments, stderr)`."""
    tools = {
        "nvidia-smi": "printf 'GPU 0: A\\nGPU 1: B\\nGPU 2: C\\n'",
        "ls": "printf '/dev/davinci0\\n/dev/davinci1\\n/dev/davinci2\\n/dev/davinci3\\n'",
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    cluster = tmp_path / "stub/mindspore/parallel/cluster"
    cluster.mkdir(parents=True)
    (tmp_path / "stub/mindspore/__init__.py").write_text("")
    (cluster / "process_entity.py").write_text("_ProcessManager = None\n")
    (cluster / "run.py").write_text("import sys\n\ndef get_args():\n    print(*sys.argv[1:])\n    sys.exit(0)\n")

    def call(*arguments, **environment):
        process = start(
            "bash",
            SCRIPT,
            *arguments,
            cwd=tmp_path,
            **{
                "PYTHONPATH": str(tmp_path / "stub"),
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "LOG_DIR": "logs",
                "ASCEND_RT_VISIBLE_DEVICES": "",
                "CUDA_VISIBLE_DEVICES": "",
                **environment,
            },
        )
        status, _, err = finish(process, 30)
        return status, (tmp_path / "logs/msrun.log").read_text().split() if status == 0 else None, err

    return call


def option(words, name):
    return words[words.index(name) + 1]


@pytest.mark.parametrize(
    "arguments, environment, devices",
    [
        ([], {}, "4"),
        (["config/quickstart.yaml"], {"ASCEND_RT_VISIBLE_DEVICES": "0,3"}, "2"),
        (["config/quickstart.yaml", "--device_target", "GPU"], {}, "3"),
        (["--device_target=GPU"], {"CUDA_VISIBLE_DEVICES": "5"}, "1"),
        (["config/quickstart.yaml", "7"], {}, "7"),
    ],
    ids=["all Ascend", "visible Ascend", "nvidia-smi", "visible GPU", "given"],
)
def test_all_devices_of_the_machine(launch, arguments, environment, devices):
    status, words, err = launch(*arguments, "--set", "data.root=/data", **environment)
    assert status == 0, err
    assert option(words, "--worker_num") == option(words, "--local_worker_num") == devices
    assert option(words, "--device_target") == ("GPU" if "GPU" in str(arguments) else "Ascend")
    name = "quickstart" if "config/quickstart.yaml" in arguments else "resnet50_imagenet_98"
    assert option(words, "--config").endswith(f"/config/{name}.yaml")
    assert option(words, "--set") == "data.root=/data"
    assert 1024 <= int(option(words, "--master_port")) < 65536


def test_second_of_two_nodes_with_a_rank_table(launch, tmp_path):
    (tmp_path / "table.json").write_text("{}")
    nodes = {"NODE_COUNT": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    for arguments, environment in ((["--rank_table_file", "table.json"], {}), ([], {"RANK_TABLE_FILE": "table.json"})):
        status, words, err = launch("config/quickstart.yaml", "8", *arguments, **nodes, **environment)
        assert status == 0, err
        expected = {
            "--worker_num": "16",
            "--local_worker_num": "8",
            "--node_rank": "1",
            "--master_addr": "10.0.0.1",
            "--master_port": "8118",
            "--rank_table_file": "table.json",
        }
        assert {name: option(words, name) for name in expected} == expected
        assert words.index("--rank_table_file") < words.index(str(PROJECT / "train.py"))


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        (["config/absent.yaml"], {}, "no configuration file config/absent.yaml"),
        (["config/quickstart.yaml", "many"], {}, "DEVICES: 'many' is not a number from 1"),
        (["config/quickstart.yaml", "--device_target", "CPU"], {}, "DEVICES: not given; on CPU"),
        (["config/quickstart.yaml", "--device_target", "TPU"], {}, "TPU"),
        (["config/quickstart.yaml", "--device_target"], {}, "--device_target: expected one argument"),
        (["config/quickstart.yaml", "0"], {}, "DEVICES: '0'"),
        (["config/quickstart.yaml", "2"], {"RANK_TABLE_FILE": "absent.json"}, "RANK_TABLE_FILE: no file"),
        (["config/quickstart.yaml", "2"], {"NODE_COUNT": "2"}, "NODE_RANK: 'not set' is not a number from 0 to 1"),
        (["config/quickstart.yaml", "2"], {"NODE_COUNT": "2", "NODE_RANK": "0"}, "MASTER_ADDR: not set"),
        (
            ["config/quickstart.yaml", "2"],
            {"NODE_COUNT": "2", "NODE_RANK": "2"},
            "NODE_RANK: '2' is not a number from 0 to 1",
        ),
        (["config/quickstart.yaml", "2"], {"NODE_COUNT": "two"}, "NODE_COUNT: 'two'"),
        (["config/quickstart.yaml", "2"], {"MASTER_PORT": "65536"}, "MASTER_PORT: '65536'"),
        (["config/quickstart.yaml", "2"], {"LOG_DIR": "/proc/nowhere"}, "/proc/nowhere: No such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_one_line_and_status_2(launch, arguments, environment, message):
    status, _, err = launch(*arguments, **environment)
    assert status == 2 and err.count("\n") == 1 and message in err, err
    assert err.startswith("run_distribute_train.sh: ")


def test_sigterm_before_the_ranks_have_started(launch, tmp_path):
    (tmp_path / "stub/mindspore/parallel/cluster/run.py").write_text(
        "import time\n\ndef get_args():\n    open('started', 'w').close()\n    time.sleep(1000)\n"
    )
    process = start(
        "bash",
        SCRIPT,
        "config/quickstart.yaml",
        "2",
        "--device_target",
        "CPU",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "stub"),
        LOG_DIR="logs",
    )
    wait_for((tmp_path / "started").exists, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, 15)[0] == 143


def test_ranks_without_msrun_do_not_train_alone(monkeypatch):
    monkeypatch.delenv("MS_ROLE", raising=False)
    monkeypatch.setenv("RANK_SIZE", "8")
    with pytest.raises(
        UserError, match="^RANK_SIZE: 8 ranks, but not started by msrun; scripts/run_distribute_train.sh"
    ):
        join()
    monkeypatch.setenv("RANK_SIZE", "1")
    assert join() is ALONE


@pytest.mark.skipif(any(Path("/dev").glob("davinci[0-9]*")), reason="this machine has Ascend devices")
def test_no_device_at_all(launch, tmp_path):
    (tmp_path / "ls").unlink()
    status, _, err = launch("config/quickstart.yaml")
    assert status == 2 and "no Ascend device found" in err
