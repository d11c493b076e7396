"""The command as it is installed: recipes are found from every folder, and a wheel holds what it needs."""

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version

import pytest

from conftest import PROJECT
from doors import command, door, refused
from rpg_ms.commands import COMMANDS
from rpg_ms.config import load_config

RECIPES = sorted(file.stem for file in (PROJECT / "config").glob("*.yaml"))
SETUPTOOLS = 77  # pyproject.toml asks for it


def names_of(listing):
    """The recipes in what `rpg-ms recipes` printed, each with a line on what it is."""
    lines = [line.split(maxsplit=1) for line in listing.splitlines()]
    assert all(len(line) == 2 for line in lines), listing
    return [name for name, _ in lines]


def test_recipes_are_listed_from_any_folder(tmp_path):
    result = door("recipes", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert names_of(result.stdout) == RECIPES and "quickstart" in RECIPES


def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "quickstart", "config/quickstart.yaml", "resnet50_imagenet_98":  # the last one has bases
        file = PROJECT / "config" / f"{name.replace('config/', '').replace('.yaml', '')}.yaml"
        assert load_config(name) == load_config(file)
    result = door(
        "compare", "--config", "quickstart", "--methods", "gmp", "--densities", "0.1", "--dry_run", cwd=tmp_path
    )
    assert result.returncode == 0 and "missing   gmp at 90 % sparsity, seed 0" in result.stdout, result.stderr
    refused(
        door("eval", "--config", "quickstrat", "--checkpoint_path", "x", cwd=tmp_path),
        "rpg-ms eval: error: quickstrat: no such file",
    )


def test_a_file_comes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("train: {epochs: 77}")
    assert load_config("quickstart").train.epochs == 77


def test_commands_are_told_and_others_refused(tmp_path):
    for arguments in [], ["--help"]:
        result = subprocess.run(command(*arguments or ["--help"]), cwd=PROJECT, stdout=subprocess.PIPE, check=True)
        assert all(f"  {name} ".encode() in result.stdout for name in COMMANDS)
    refused(door("trian", cwd=tmp_path), "rpg-ms: error: 'trian' is not one of train, eval")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the checkout's files, built without a network."""
    try:
        installed = version("setuptools")
    except PackageNotFoundError:
        installed = "0"
    if int(installed.split(".")[0]) < SETUPTOOLS:
        pytest.skip(f"building a wheel without a network needs setuptools >= {SETUPTOOLS}, here is {installed}")
    folder = tmp_path_factory.mktemp("wheel")
    project = folder / "project"  # a copy, as building leaves folders where it is done
    for name in ("rpg_ms", "config"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, project)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--wheel-dir",
            str(folder),
            str(project),
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
    )
    return next(folder.glob("rpg_ms-*.whl"))


def test_a_wheel_holds_packages_recipes_data_and_the_command(wheel, tmp_path):
    expected = {
        str(file.relative_to(PROJECT))
        for pattern in ("*.py", "fashion_mnist/*")
        for file in (PROJECT / "rpg_ms").rglob(pattern)
    }
    expected |= {
        f"rpg_ms/recipes/{file.relative_to(PROJECT / 'config')}" for file in (PROJECT / "config").rglob("*.yaml")
    }
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        entry_points = ConfigParser()
        entry_points.read_string(file.read(next(name for name in names if name.endswith("entry_points.txt"))).decode())
        file.extractall(tmp_path / "site")
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.startswith("rpg_ms/recipes/base/") for name in expected)
    assert dict(entry_points["console_scripts"]) == {"rpg-ms": "rpg_ms.commands:main"}
    (tmp_path / "empty").mkdir()
    result = subprocess.run(
        command("recipes"),
        cwd=tmp_path / "empty",
        env={"PYTHONPATH": str(tmp_path / "site")},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert names_of(result.stdout) == RECIPES
