"""Files of PyTorch's that were made to do harm: nothing runs, and memory is in proportion to the file."""

import copy
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import torch_files
from conftest import PROJECT
from rpg_ms.errors import UserError
from rpg_ms.weights import pytorch_file
from rpg_ms.weights.pytorch_file import read_pytorch

both_layouts = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@both_layouts
@pytest.mark.parametrize(
    "function, args",
    [(os.system, ("touch ran",)), (eval, ("open('ran', 'w')",)), (open, ("ran", "w")), (getattr, ("", "join"))],
)
def test_nothing_is_run(tmp_path, monkeypatch, legacy, function, args):
    monkeypatch.chdir(tmp_path)
    torch_files.save("x.pth", {"a": np.ones(2, np.float32), "b": Runs(function, *args)}, legacy)
    content = read_pytorch("x.pth")
    assert content["a"].tolist() == [1, 1] and repr(content["b"]).endswith(f".{function.__name__}")
    assert os.listdir() == ["x.pth"]


def write_pickle(path, code):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", code)


# Every operation with which a pickle can name, make, call, fill or restore something, aimed at os.system.
SYSTEM = b"cposix\nsystem\n"
TOUCH = b"X\x09\x00\x00\x00touch ran"
HOSTILE = {
    "REDUCE": SYSTEM + TOUCH + b"\x85R",
    "INST": b"(" + TOUCH + b"iposix\nsystem\n",
    "OBJ": b"(" + SYSTEM + TOUCH + b"o",
    "NEWOBJ": SYSTEM + TOUCH + b"\x85\x81",
    "NEWOBJ_EX": SYSTEM + TOUCH + b"\x85}\x92",
    "STACK_GLOBAL": b"X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93" + TOUCH + b"\x85R",
    "REDUCE of a result": b"c__builtin__\ngetattr\ncposix\npath\nX\x06\x00\x00\x00system\x86R" + TOUCH + b"\x85R",
    "BUILD with __setstate__": b"cposix\nX\n)R}X\x0c\x00\x00\x00__setstate__" + SYSTEM + b"sb" + TOUCH + b"b",
    "BUILD of a name": SYSTEM + b"}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xsb" + TOUCH + b"\x85R",
    "BUILD with slots": b"ccollections\nOrderedDict\n)RN}X\x05\x00\x00\x00clearX\x01\x00\x00\x00xs\x86b",
    "SETITEM on a class": SYSTEM + TOUCH + TOUCH + b"s",
    "APPEND to a class": SYSTEM + TOUCH + b"a",
    "APPENDS to a class": SYSTEM + b"(" + TOUCH + b"e",
    "through a rebuild": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + SYSTEM + b"N" + TOUCH + b"\x85}tR",
    "copyreg": b"ccopyreg\n__newobj_ex__\n" + SYSTEM + TOUCH + b"\x85}\x87R",
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE)
def test_no_operation_runs_anything(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("canary.py").write_text("from os import path, system; open('imported', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    other = code.replace(b"posix", b"canary").replace(b"\x05\x00\x00\x00canary", b"\x06\x00\x00\x00canary")
    for hostile in (code, other):
        write_pickle("x.pth", b"\x80\x02" + hostile + b"0N.")
        assert read_pytorch("x.pth") is None
        write_pickle("x.pth", b"\x80\x02}X\x01\x00\x00\x00w" + hostile + b"s.")
        assert "w" in read_pytorch("x.pth")
    assert sorted(os.listdir()) == ["canary.py", "x.pth"] and "canary" not in sys.modules


def test_a_pickle_changes_nothing_of_the_reader(tmp_path):
    before = dict(pytorch_file.FUNCTIONS), dict(pytorch_file.STORAGES)
    for name in pytorch_file.FUNCTIONS:
        named = b"c%s\n%s\n" % tuple(part.encode() for part in name.rsplit(".", 1))
        for change in (
            b"}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xsb",
            b"N}X\x04\x00\x00\x00nameNs\x86b",
            b"X\x01\x00\x00\x00aNs",
            b"Na",
        ):
            write_pickle(tmp_path / "x.pth", b"\x80\x02" + named + change + b"0" + named + b".")
            assert repr(read_pytorch(tmp_path / "x.pth")) == name
    assert (pytorch_file.FUNCTIONS, pytorch_file.STORAGES) == before


def limited(path, code, seconds=20):
    """Read a pickle in a process with 2 GB of memory; its output, "refused" or "read"."""
    write_pickle(path, code)
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from rpg_ms.errors import UserError\n"
        "from rpg_ms.weights.pytorch_file import read_pytorch\n"
        "try: read_pytorch(%r); print('read')\n"
        "except UserError as error: print('refused', error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", PREPARE + program % str(path)],
        cwd=PROJECT,
        timeout=seconds + 60,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-1000:]
    return result.stdout


# rpg_ms.weights brings MindSpore, which takes seconds and memory: the reader alone needs neither.
PREPARE = (
    "import sys, types, os\n"
    "for name in ('rpg_ms', 'rpg_ms.weights'):\n"
    "    module = sys.modules[name] = types.ModuleType(name); module.__path__ = [name.replace('.', os.sep)]\n"
)
LAUGH = b"]q\x00" + b"".join(b"]q%c(" % i + b"h%c" % (i - 1) * 10 + b"e0" for i in range(1, 60)) + b"h\x3b"
BOMBS = {
    "a huge memo": b"Nr\xff\xff\xff\x7f.",
    "a huge text": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x00a.",
    "huge bytes": b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00a.",
    "a huge bytearray": b"\x96\xff\xff\xff\xff\xff\x00\x00\x00a.",
    "a huge frame": b"\x95\xff\xff\xff\xff\xff\x00\x00\x00N.",
    "lists of lists of lists": LAUGH + b".",
    "a list that holds itself": b"]q\x00h\x00a.",
    "a dict that holds itself": b"}q\x00X\x01\x00\x00\x00ah\x00s.",
    "a deep list": b"]" * 100_000 + b"a" * 99_999 + b".",
    "pairs of a long list": b"]q\x00("
    + b"N" * 100_000
    + b"e0ccollections\nOrderedDict\n]("
    + b"h\x00" * 100_000
    + b"e\x85R.",
    "copies of a long list": b"](" + b"N" * 100_000 + b"eq\x000](" + b"ctorch\nSize\nh\x00\x85R" * 20_000 + b"e.",
    "copies of a long text": b"X\xa0\x86\x01\x00"
    + b"x" * 100_000
    + b"q\x000]("
    + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 40_000
    + b"e.",
}


@pytest.mark.parametrize("code", BOMBS.values(), ids=BOMBS)
def test_memory_is_in_proportion_to_the_file(tmp_path, code):
    limited(tmp_path / "x.pth", b"\x80\x04" + code)


def test_modules_that_hold_one_another(tmp_path):
    """Two names in each of forty modules for the one below: 2^40 parts."""

    def part(below):  # GET of the module below, MEMOIZE of this one
        inner = b"}" if below is None else b"}X\x01\x00\x00\x00a%bsX\x01\x00\x00\x00b%bs" % (below, below)
        return (
            b"cm\nM\n)\x81}X\x0b\x00\x00\x00_parameters}sX\x08\x00\x00\x00_buffers}sX\x08\x00\x00\x00_modules"
            + inner
            + b"sb"
        )

    code = part(None) + b"q\x000"
    for number in range(1, 40):
        code += part(b"h%c" % (number - 1)) + b"q%c0" % number
    write_pickle(tmp_path / "x.pth", b"\x80\x02" + code + b"h\x27.")
    with pytest.raises(UserError, match="a module of too many parts"):
        read_pytorch(tmp_path / "x.pth")


def test_entries_that_overlap_are_refused(tmp_path):
    """A zip archive whose directory names one stretch of bytes many times."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        archive.writestr("a/data/0", bytes(100_000))
        entry = archive.getinfo("a/data/0")
        for number in range(1, 30):
            other = copy.copy(entry)
            other.filename = f"a/data/{number}"
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    with pytest.raises(UserError, match="compressed or overlap"):
        read_pytorch(path)


def test_compressed_archives_are_refused(tmp_path):
    torch_files.save(tmp_path / "x.pth", {"a": np.zeros(10**6, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed or overlap"):
        read_pytorch(tmp_path / "x.pth")
