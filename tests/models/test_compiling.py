"""Networks that graph mode does not compile: one line, before anything is written; compiled once where it does."""

import collections
import os
import sys

import mindspore as ms
import pytest
from mindspore.graph.api import _CellGraphExecutor

from doors import TINY, door, last_json, refused
from rpg_ms.config import load_config
from rpg_ms.errors import UserError
from rpg_ms.models.compiling import reason
from rpg_ms.tasks import create_task
from rpg_ms.training import build
from rpg_ms.training.distributed import ALONE

NETWORKS = """
from mindspore import nn, ops

class Base(nn.Cell):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 4)
        self.fc = nn.Dense(4 * 7 * 7, num_classes)

    def construct(self, x):
        return self.head(ops.relu(self.conv(x)))

    def head(self, x):
        return self.fc(x.reshape(x.shape[0], -1))

class NotSelf(Base):
    def construct(this, x):  # here
        return this.head(this.conv(x))

class Tries(Base):
    def construct(self, x):  # here
        try:
            x = self.conv(x)
        except ValueError:
            pass
        return self.head(x)

class Within(nn.Cell):
    def __init__(self):
        super().__init__()
        self.body = Tries()

    def construct(self, x):
        return self.body(x)  # here

class AsNumPy(Base):
    def construct(self, x):  # here
        x = self.conv(x)
        return self.head(x / (float(x.asnumpy().max()) + 1))

class Dict(Base):
    def construct(self, x):  # here
        x = self.head(self.conv(x))
        if self.training:
            return {"logits": x}
        return x

class InferenceTries(Base):
    def construct(self, x):  # here
        x = self.conv(x)
        if not self.training:
            try:
                x = x * 1
            except ValueError:
                pass
        return self.head(x)

class InferenceAsNumPy(Base):
    def construct(self, x):  # here
        x = self.conv(x)
        if not self.training:
            x = x / (float(x.asnumpy().max()) + 1)
        return self.head(x)
"""


def place(name):
    """The line of a network that the message names."""
    lines = NETWORKS.splitlines()
    start = lines.index(next(line for line in lines if line.startswith(f"class {name}(")))
    return next(number for number, line in enumerate(lines, 1) if number > start and "# here" in line)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_graphs.py").write_text(NETWORKS)
    config = TINY
    for old, new in (
        ("limit: 1024", "limit: 128"),
        ("epochs: 3", "epochs: 1"),
        ("warmup_epochs: 0.5", "warmup_epochs: 0"),
        ("method: rpg", "method: dense"),
        ("lambda: 0.5", "lambda: 0"),
        ("alpha: 0.3", "alpha: 0"),
    ):
        config = config.replace(old, new)
    (tmp_path / "tiny.yaml").write_text(config)
    return tmp_path


@pytest.fixture
def built(folder, monkeypatch):
    """Builds `(config, task, network, training step)` in this process, in the folder."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_graphs", raising=False)
    ms.set_context(mode=ms.GRAPH_MODE)

    def build_all(name, *changes):
        config = load_config("tiny.yaml", [f"model.name=my_graphs:{name}", *changes])
        task = create_task(config, ALONE)
        network, found = build.build_network(config, task)
        step, _ = build.build_train_step(config, task, network, found.layers, "CPU", ALONE)
        return config, task, network, step

    return build_all


@pytest.mark.parametrize(
    "name, why",
    [
        ("NotSelf", "training step: The parameters number of the function is 2"),
        ("Tries", "training step: Unsupported statement 'Try' ("),
        ("Within", "training step: Unsupported statement 'Try' ("),
        ("AsNumPy", "training step: The object is not callable"),
        ("InferenceTries", "inference: Unsupported statement 'Try' ("),
        ("InferenceAsNumPy", "inference: 'int' object"),
    ],
)
def test_what_does_not_compile_is_named_with_its_place(built, folder, name, why):
    objects = built(name)
    with pytest.raises(UserError) as error:
        build.compile_step(*objects)
    message = str(error.value)
    assert message.startswith(f"model.name: my_graphs:{name}: graph mode does not compile its {why}")
    assert f"({folder}/my_graphs.py, line {place(name)}); mode=pynative runs " in message and "\n" not in message
    assert not (folder / "rank_0").exists()


def test_training_is_refused_before_the_folder_is_begun(folder):
    """A failure that MindSpore's compiler logs besides."""
    result = door(
        "train.py", "--config", "tiny.yaml", "--output_dir", "out", "--set", "model.name=my_graphs:Dict", cwd=folder
    )
    refused(
        result,
        "training step: For 'cross_entropy_loss', the 'input' must be a Tensor, but got 'Dictionary",
        f"({folder}/my_graphs.py, line {place('Dict')}); mode=pynative",
    )
    assert result.stdout == "" and sorted(set(os.listdir(folder)) - {"__pycache__"}) == ["my_graphs.py", "tiny.yaml"]


def test_a_run_outlives_a_network_that_does_not_compile(folder):
    common = ["--config", "tiny.yaml", "--output_dir", "out", "--set"]
    last_json(door("train.py", *common, "model.name=my_graphs:Base", cwd=folder))
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    common.append("model.name=my_graphs:InferenceTries")
    for name, *more in (
        ["train.py", "--overwrite"],
        ["eval.py", "--checkpoint_path", "out/last.ckpt"],
        ["export.py", "--checkpoint_path", "out/last.ckpt", "--file_name", "net"],
    ):
        refused(
            door(name, *common, *more, cwd=folder),
            "does not compile its inference: Unsupported statement 'Try' "
            f"({folder}/my_graphs.py, line {place('InferenceTries')}); mode=pynative",
        )
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()} == before
    assert sorted(set(os.listdir(folder)) - {"__pycache__"}) == ["my_graphs.py", "out", "tiny.yaml"]


@pytest.mark.parametrize(
    "changes, cells",
    [
        ([], ["PlainStep", "_CountCorrect"]),
        (["train.mixup=0.2", "train.amp_level=O2"], ["PlainStep", "_CountCorrect"]),
        (["train.micro_batches=2"], ["TaskGradients", "_CountCorrect"]),
        (["train.sink_size=2", "train.log_every=2"], ["SunkSteps", "_CountCorrect"]),
    ],
)
def test_nothing_is_compiled_twice(built, changes, cells, monkeypatch):
    compiled = collections.Counter()
    honest = _CellGraphExecutor.compile

    def counted(self, cell, *arguments, **options):
        phase, anew = honest(self, cell, *arguments, **options)
        compiled[type(cell).__name__] += anew
        return phase, anew

    monkeypatch.setattr(_CellGraphExecutor, "compile", counted)
    config, task, network, step = built("Base", *changes)
    weights = {parameter.name: parameter.asnumpy().copy() for parameter in step.get_parameters()}
    build.compile_step(config, task, network, step)
    assert sorted(cells) == sorted(name for name, count in compiled.items() if count == 1)
    for parameter in step.get_parameters():
        assert parameter.asnumpy().tobytes() == weights[parameter.name].tobytes(), parameter.name
    assert step.training and network.training
    batches = iter(task.train_batches(0, 2))
    if step.can_sink():
        step.sink([tuple(next(batches).values()) for _ in range(2)])
    else:
        step(*next(batches).values())
    task.evaluate(network)
    assert all(compiled[name] == 1 for name in cells), compiled


@pytest.mark.parametrize(
    "said, expected",
    [
        (
            "\n----------------------\n- Kernel select failed:\n----------------------\nSelect CPU "
            "operator[Conv2D] fail! "
            "Unsupported data type!\nThe supported are Float32\nnode: @x\n\n----------------------"
            "\n- C++ Call Stack: (For framework developers)\n----------------------\nx.cc:469 Set\n",
            "Select CPU operator[Conv2D] fail! Unsupported data type!; The supported are Float32",
        ),
        (
            "a is b.\nFunctionGraph ID : x\nNodeInfo: In file y\n\n----------------------\n"
            "- C++\n----------------------\nx",
            "a is b",
        ),
        ("", "ValueError"),
        ("plain", "plain"),
    ],
)
def test_what_mindspores_errors_say(said, expected):
    assert reason(ValueError(said)) == expected
