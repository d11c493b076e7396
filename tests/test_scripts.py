"""The shell scripts, as far as they can be tried in seconds and without a network."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import PROJECT

SCRIPTS = sorted((PROJECT / "scripts").glob("*.sh"))


def run(*command, **environment):
    """Run a command from the root folder, so that nothing leans on the working directory."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "RPG_VENV")}
    return subprocess.run(
        [str(word) for word in command],
        cwd="/",
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def executable(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/usr/bin/env bash\n" + text)
    file.chmod(0o755)
    return file


def fails_with_one_line(result, *words, status=1):
    assert result.returncode == status, result.stderr
    assert result.stderr.endswith("\n") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.fixture
def environment(tmp_path):
    """Call environment.sh with an environment folder of its own."""

    def call(**variables):
        variables = {"RPG_VENV": str(tmp_path / "venv"), **variables}
        return run("bash", PROJECT / "scripts/environment.sh", **variables)

    return call


@pytest.fixture
def project(tmp_path):
    """A copy of the scripts in a project whose front doors print their name and arguments."""
    root = tmp_path / "a project"
    shutil.copytree(PROJECT / "scripts", root / "scripts")
    shutil.copy(PROJECT / "pyproject.toml", root)
    (root / "config").mkdir()
    (root / "config/quickstart.yaml").write_text("")
    for door in ("train", "eval", "export"):
        (root / f"{door}.py").write_text(f"import sys; print('{door}', *sys.argv[1:])")
    (root / "rpg_ms").mkdir()
    (root / "rpg_ms/__main__.py").write_text("import sys; print(*sys.argv[1:])")
    return root


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_parses_and_starts_with_its_usage(script):
    assert run("bash", "-n", script).returncode == 0
    text = script.read_text()
    if script.name != "common.sh":  # only ever sourced
        assert re.match(r"#!/usr/bin/env bash\n# .*\n#   bash scripts/" + script.name, text)
        assert "\nset -euo pipefail\n" in text


def test_unsupported_python(environment, tmp_path):
    old = executable(tmp_path / "old", "echo 'is Python 3.8, not 3.9 to 3.12'; exit 1")
    fails_with_one_line(environment(PYTHON=str(old)), f"PYTHON={old} is Python 3.8, not 3.9 to 3.12")
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("version, supported", [((3, 8), False), ((3, 9), True), ((3, 12), True), ((3, 13), False)])
def test_supported_versions(version, supported):
    inspect = (PROJECT / "scripts/inspect_python.py").read_text()
    result = run(
        sys.executable,
        "-c",
        f"import sys; sys.version_info = {version + (0, 'final', 0)}; "
        f"__file__ = {str(PROJECT / 'scripts/inspect_python.py')!r}; exec({inspect!r})",
    )
    refusal = f"is Python {version[0]}.{version[1]}, not 3.9 to 3.12\n"
    assert result.stdout == refusal if not supported else refusal not in result.stdout
    assert supported or result.returncode == 1


def test_packages_of_a_virtual_environment_are_told(tmp_path):
    """environment.sh gives them to the environment that it makes: a MindSpore among them is kept."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "outer"], check=True)
    result = run(tmp_path / "outer/bin/python", PROJECT / "scripts/inspect_python.py")
    version, mindspore, lacking, packages = result.stdout.split("\n")[:4]
    assert mindspore == "" and "mindspore" in lacking
    assert packages.startswith(str(tmp_path / "outer")) and packages.endswith("site-packages")


def test_python_that_cannot_run(environment, tmp_path):
    broken = executable(tmp_path / "broken", "echo 'pyenv: python: command not found' >&2; exit 127")
    fails_with_one_line(environment(PYTHON=str(broken)), f"PYTHON={broken} cannot be run")
    fails_with_one_line(environment(PYTHON=str(tmp_path / "absent")), "absent cannot be run")


def test_no_python_at_all(environment, tmp_path):
    for tool in ("bash", "dirname", "basename", "mkdir", "touch", "ls", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    fails_with_one_line(environment(PATH=str(tmp_path)), "no usable Python on PATH", "3.9 to 3.12")


def fresh_python(folder):
    """A Python that reports a supported version without MindSpore, so that everything would be installed."""
    return executable(folder / "python", "printf '3.11.7 /usr\\n\\nmindspore\\n'")


def test_too_little_disk_space(environment, tmp_path):
    executable(tmp_path / "bin/df", "printf 'header\\n/dev/x 9000000 5976576 3072000 67%% /\\n'")
    result = environment(PYTHON=str(fresh_python(tmp_path)), PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    fails_with_one_line(result, str(tmp_path / "venv"), "3000 MB free", "4500 MB needed")
    assert not (tmp_path / "venv").exists()


def test_failing_pip_leaves_nothing_behind(environment, tmp_path):
    # A Python whose venv module makes an environment with a pip that finds no network.
    pip = executable(tmp_path / "offline", "echo 'ERROR: Could not find a version'; exit 1")
    executable(tmp_path / "bin/df", "printf 'header\\n/dev/x 9000000 0 9000000 0%% /\\n'")
    python = executable(
        tmp_path / "python",
        f"""
        if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "{pip}" "$3/bin/python"
        else printf '3.11.7 /usr\\n\\nmindspore\\n'; fi""",
    )
    for _ in range(2):
        result = environment(PYTHON=str(python), PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        fails_with_one_line(result, "network", "Could not find a version; log: ", str(tmp_path / "venv.log"))
        assert not (tmp_path / "venv").exists()


def test_own_mindspore_is_kept(environment, tmp_path):
    executable(tmp_path / "bin/df", "printf 'header\\n/dev/x 9000000 0 3000000 0%% /\\n'")
    installed = executable(
        tmp_path / "installed",
        """
        case "$*" in
            *"pip install"*) echo "$@" ;;
            *) printf '3.11.7 /usr\\n2.8.0\\n\\n' ;;
        esac""",
    )
    python = executable(
        tmp_path / "python",
        f"""
        if [ "$1 $2" = "-m venv" ]; then
            echo "$@"; mkdir -p "$4/bin"; cp "{installed}" "$4/bin/python"
        else printf '3.11.7 /usr\\n2.8.0\\npytest\\n'; fi""",
    )
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    result = environment(PYTHON=str(python), PATH=path)
    assert (result.returncode, result.stderr) == (0, "")
    log = (tmp_path / "venv.log").read_text()
    assert "--system-site-packages" in log and "mindspore==2.8.0" in log
    # Complete now: nothing is made again, also when told which Python to use.
    (tmp_path / "venv.log").unlink()
    for variables in ({}, {"PYTHON": str(python)}):
        again = environment(PATH=path, **variables)
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert not (tmp_path / "venv.log").exists()
    # As if interrupted: made again.
    (tmp_path / "venv/made-by-rpg-ms").write_text("")
    assert environment(PYTHON=str(python), PATH=path).returncode == 0
    assert (tmp_path / "venv.log").exists()


def test_a_folder_of_somebody_else_is_left_alone(environment, tmp_path):
    precious = tmp_path / "venv/precious"
    precious.parent.mkdir()
    precious.write_text("data")
    fails_with_one_line(environment(), f"{precious.parent} was not made by this script")
    # Complete, but for two packages: named, not installed.
    executable(tmp_path / "venv/bin/python", "printf '3.11.7 /usr\\n2.8.0\\nscipy tqdm\\n'")
    fails_with_one_line(environment(), "lacks scipy tqdm")
    # Complete: used as it is.
    executable(tmp_path / "venv/bin/python", "printf '3.11.7 /usr\\n2.8.0\\n\\n'")
    assert environment().returncode == 0
    assert precious.read_text() == "data" and not (tmp_path / "venv/made-by-rpg-ms").exists()


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("run_standalone_train.sh", ["config/quickstart.yaml", "TPU"]),
        ("run_eval.sh", []),
        ("run_eval.sh", ["config/quickstart.yaml"]),
        ("run_eval.sh", ["config/quickstart.yaml", "--seed", "1"]),
        ("run_compare.sh", []),
        ("run_compare.sh", ["--methods", "rpg"]),
        ("run_export.sh", ["config/quickstart.yaml"]),
        ("run_export.sh", ["config/quickstart.yaml", "--seed", "1"]),
    ],
)
def test_wrong_arguments(project, script, arguments):
    fails_with_one_line(run("bash", project / "scripts" / script, *arguments), f"usage: {script}", status=2)


@pytest.mark.parametrize("script", ["run_standalone_train.sh", "run_eval.sh", "run_export.sh", "run_compare.sh"])
def test_absent_configuration(project, script):
    result = run("bash", project / "scripts" / script, "config/absent.yaml", "CPU")
    fails_with_one_line(result, "no configuration file config/absent.yaml", status=2)


@pytest.mark.parametrize(
    "script, arguments, expected",
    [
        ("run_standalone_train.sh", [], "train --config {config} --device_target auto"),
        (
            "run_standalone_train.sh",
            ["config/quickstart.yaml", "Ascend", "--set", "a=b c"],
            "train --config {config} --device_target Ascend --set a=b c",
        ),
        ("run_standalone_train.sh", ["--seed", "1"], "train --config {config} --device_target auto --seed 1"),
        (
            "run_standalone_train.sh",
            ["config/quickstart.yaml", "--seed", "1"],
            "train --config {config} --device_target auto --seed 1",
        ),
        (
            "run_eval.sh",
            ["config/quickstart.yaml", "x.ckpt", "--seed", "1"],
            "eval --config {config} --checkpoint_path x.ckpt --seed 1",
        ),
        (
            "run_compare.sh",
            ["config/quickstart.yaml", "--methods", "a=rpg,x.y=[1, 2]", "--densities", "0.1"],
            "compare --config {config} --methods a=rpg,x.y=[1, 2] --densities 0.1",
        ),
        (
            "run_export.sh",
            ["config/quickstart.yaml", "r/x.ckpt"],
            "export --config {config} --checkpoint_path r/x.ckpt --file_format MINDIR --file_name r/x",
        ),
        (
            "run_export.sh",
            ["config/quickstart.yaml", "x.ckpt", "ONNX", "y", "--seed", "1"],
            "export --config {config} --checkpoint_path x.ckpt --file_format ONNX --file_name y --seed 1",
        ),
        (
            "run_export.sh",
            ["config/quickstart.yaml", "x.ckpt", "ONNX", "--softmax"],
            "export --config {config} --checkpoint_path x.ckpt --file_format ONNX --file_name x --softmax",
        ),
        (
            "run_export.sh",
            ["config/quickstart.yaml", "x.ckpt", "--ema"],
            "export --config {config} --checkpoint_path x.ckpt --file_format MINDIR --file_name x --ema",
        ),
        (
            "run_export.sh",
            ["config/quickstart.yaml", "r/x.ckpt", "PACKED"],
            "export --config {config} --checkpoint_path r/x.ckpt --file_format PACKED --file_name r/x",
        ),
    ],
)
def test_arguments_reach_the_front_door(project, script, arguments, expected):
    result = run("bash", project / "scripts" / script, *arguments, PYTHON=sys.executable)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == expected.format(config=project / "config/quickstart.yaml") + "\n"


def test_a_format_that_export_does_not_know():
    result = run(
        "bash",
        PROJECT / "scripts/run_export.sh",
        "config/quickstart.yaml",
        "a.ckpt",
        "PTH",
        PYTHON=sys.executable,
        RPG_VENV="/nowhere",
    )
    fails_with_one_line(result, "export.py: error: argument --file_format: invalid choice: 'PTH'", "MINDIR", status=2)


def test_the_projects_environment_comes_before_the_users_python(project):
    executable(project / ".venv/bin/python", "echo from the environment")
    script = project / "scripts/run_eval.sh"
    result = run("bash", script, "config/quickstart.yaml", "x.ckpt", PYTHON=sys.executable)
    assert result.stdout == "from the environment\n"


def test_quickstart_trains_evaluates_and_exports_twice(project):
    executable(project / ".venv/bin/python", f'exec "{sys.executable}" "$@"')
    (project / "train.py").write_text("""
import json, os, sys
folder = sys.argv[-1]
os.makedirs(folder, exist_ok=True)
json.dump({"top1": 87.654, "density": 0.05}, open(f"{folder}/summary.json", "w"))
print("train", *sys.argv[1:])
""")
    for _ in range(2):
        result = run("bash", project / "scripts/quickstart.sh", "--set", "train.epochs=1")
        assert (result.returncode, result.stderr) == (0, "")
        train, evaluation, export, figures, place = result.stdout.splitlines()
        assert train == (
            "train --config config/quickstart.yaml --overwrite --set train.epochs=1 --output_dir runs/quickstart"
        )
        checkpoint = "--config runs/quickstart/config.yaml --checkpoint_path runs/quickstart/last.ckpt"
        assert evaluation == f"eval {checkpoint}"
        assert export == f"export {checkpoint} --file_format MINDIR --file_name runs/quickstart/model"
        assert re.fullmatch(r"top-1 87.65 % at density 0.0500, \d+ s after installation", figures)
        assert str(project / "runs/quickstart") in place


def test_quickstart_stops_where_training_fails(project):
    executable(project / ".venv/bin/python", f'exec "{sys.executable}" "$@"')
    (project / "train.py").write_text("raise SystemExit(2)")
    result = run("bash", project / "scripts/quickstart.sh")
    assert (result.returncode, result.stdout) == (2, "")
