"""What the launcher of many processes asks of msrun, and how a job of processes ends."""

import os
import re
import signal
from pathlib import Path

import pytest

from conftest import PROJECT
from jobs import copied, finish, launch, marked, start, wait_for


@pytest.fixture
def job(tmp_path):
    """Call the launcher, with the real msrun, on a train.py of the test's own in place of the project's."""

    def call(train, ranks):
        project = copied(
            tmp_path / "a project",
            "import os, signal, subprocess, sys, time\n"
            "rank, scheduler = os.environ['RANK_ID'], os.environ['MS_ROLE'] == 'MS_SCHED'\n"
            "if scheduler: time.sleep(1000)\n" + train,
        )
        return launch(project, "config/quickstart.yaml", ranks, cwd=tmp_path, LOG_DIR=str(tmp_path / "logs"))

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
    process = launch(PROJECT, "config/quickstart.yaml", 2, "--set", "pruning.density=1.5", cwd=tmp_path)
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


@pytest.fixture
def noted(tmp_path):
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
            PROJECT / "scripts/run_distribute_train.sh",
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
def test_all_devices_of_the_machine(noted, arguments, environment, devices):
    status, words, err = noted(*arguments, "--set", "data.root=/data", **environment)
    assert status == 0, err
    assert option(words, "--worker_num") == option(words, "--local_worker_num") == devices
    assert option(words, "--device_target") == ("GPU" if "GPU" in str(arguments) else "Ascend")
    name = "quickstart" if "config/quickstart.yaml" in arguments else "resnet50_imagenet_98"
    assert option(words, "--config").endswith(f"/config/{name}.yaml")
    assert option(words, "--set") == "data.root=/data"
    assert 1024 <= int(option(words, "--master_port")) < 65536


def test_second_of_two_nodes_with_a_rank_table(noted, tmp_path):
    (tmp_path / "table.json").write_text("{}")
    nodes = {"NODE_COUNT": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    for arguments, environment in ((["--rank_table_file", "table.json"], {}), ([], {"RANK_TABLE_FILE": "table.json"})):
        status, words, err = noted("config/quickstart.yaml", "8", *arguments, **nodes, **environment)
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
def test_mistakes_are_one_line_and_status_2(noted, arguments, environment, message):
    status, _, err = noted(*arguments, **environment)
    assert status == 2 and err.count("\n") == 1 and message in err, err
    assert err.startswith("run_distribute_train.sh: ")


def test_sigterm_before_the_ranks_have_started(noted, tmp_path):
    (tmp_path / "stub/mindspore/parallel/cluster/run.py").write_text(
        "import time\n\ndef get_args():\n    open('started', 'w').close()\n    time.sleep(1000)\n"
    )
    stub = {"PYTHONPATH": str(tmp_path / "stub"), "LOG_DIR": "logs"}
    process = launch(PROJECT, "config/quickstart.yaml", 2, cwd=tmp_path, **stub)
    wait_for((tmp_path / "started").exists, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, 15)[0] == 143


@pytest.mark.skipif(any(Path("/dev").glob("davinci[0-9]*")), reason="this machine has Ascend devices")
def test_no_device_at_all(noted, tmp_path):
    (tmp_path / "ls").unlink()
    status, _, err = noted("config/quickstart.yaml")
    assert status == 2 and "no Ascend device found" in err
