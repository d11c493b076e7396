"""Reports on real, tiny runs."""

import base64
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from doors import TINY, door, last_json, refused
from rpg_ms.cells import sparsify
from rpg_ms.config import DataConfig, dump_config, load_config
from rpg_ms.data.datasets import DATASETS, known_shape, load_dataset
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.report import figures, load_run, write_report
from rpg_ms.report.runs import by_label_and_sparsity

SETTINGS = ("data.limit=256", "train.epochs=2", "pruning.update_every=2")  # 8 steps


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, in `out` of a folder; nothing changes it."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "tiny.yaml").write_text(TINY)
    last_json(door("train.py", "--config", "tiny.yaml", "--output_dir", "out", "--set", *SETTINGS, cwd=folder))
    return folder / "out"


@pytest.fixture(scope="module")
def loaded(run):
    return load_run(run)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run to damage."""
    return shutil.copytree(run, tmp_path / "copy")


class Page(HTMLParser):
    """Tags, links and text of a page; every tag must be closed in order."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def needs_nothing(self):
        style = re.search(r"<style>(.*?)</style>", self.source, re.DOTALL)[1]
        return (
            not {"script", "link", "iframe", "object", "base"} & set(self.tags)
            and "url(" not in style
            and "@import" not in style
            and all(source.startswith("data:image/png;base64,") for source in self.sources)
        )


def check_pictures(folder, names):
    """The page embeds exactly the files beside it, and they show something."""
    page = Page(folder / "report.html")
    files = {path.stem: path.read_bytes() for path in folder.glob("*.png")}
    assert set(files) == names and page.needs_nothing()
    assert [base64.b64decode(source.split(",")[1]) for source in page.sources] == [
        files[name] for name in re.findall(r'<figure id="(\w+)">', page.source)
    ]
    for name, content in files.items():
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert pixels.shape[1] >= 1000 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, name
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all(), f"{name}: something is cut off at the edge"
    return page


def test_report_of_one_run_through_the_door(run):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    result = door("report", "out", cwd=run.parent)
    assert last_json(result)["report"] == "out/report/report.html"
    assert "Warning" not in result.stderr and "Traceback" not in result.stderr
    page = check_pictures(run / "report", {"training", "layers", "cost", "rank_k"})
    summary = json.loads((run / "summary.json").read_text())
    for text in (
        "finished, 8 steps",
        f"{summary['top1']:.2f} %",
        "layer3.0.conv2",
        "64 × 64 × 3 × 3",
        "λ = 0.5",
        f"{summary['nonzero']:,} of {summary['prunable']:,}",
    ):
        assert text in page.text, text
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_the_numbers_are_those_of_the_checkpoint(run, loaded):
    values = ms.load_checkpoint(str(run / "last.ckpt"))
    summary = json.loads((run / "summary.json").read_text())
    assert loaded.label == "rpg" and loaded.sparsity == 80 and loaded.measured == summary["top1"]
    assert loaded.total("weights") == summary["prunable"] and loaded.total("nonzero") == summary["nonzero"]
    trained = [
        value.size
        for name, value in values.items()
        if name.endswith((".weight", ".bias", ".gamma", ".beta")) and ":" not in name
    ]
    assert loaded.total("weights") + loaded.other_parameters == sum(trained)
    assert len(loaded.layers) == 8 and len(loaded.rank_updates) == len(loaded.topology) == 2
    for layer in loaded.layers:
        mask, weight = values[f"{layer.name}.weight_mask"].asnumpy(), values[f"{layer.name}.weight"].asnumpy()
        assert (layer.shape, layer.nonzero) == (mask.shape, mask.sum())
        assert layer.dead_filters == sum(not filter_.any() for filter_ in weight)
        assert layer.numeric_rank == np.linalg.matrix_rank(weight.reshape(len(weight), -1))
        assert layer.numeric_rank <= layer.structural_rank <= layer.full_rank
        assert layer.flops * layer.weights == layer.dense_flops * layer.nonzero
        assert layer.in_rank_term == (layer.name != "linear")
    assert loaded.layers[0].dense_flops == 16 * 9 * 28 * 28 and loaded.layers[-1].dense_flops == 640


def test_density_begins_where_the_run_did(loaded):
    def drawn(run):
        (line,) = figures.training(run).axes[2].lines
        return list(zip(*line.get_data()))

    logged = [(line["step"], 100 * line["density"]) for line in loaded.topology]
    end = (loaded.total_steps, 100 * loaded.density)
    assert drawn(loaded) == [(0, 100), *logged, end]
    pruned = dataclasses.replace(loaded, start=[{"density": 0.25}])  # weights to start from may be
    assert drawn(pruned) == [(0, 25), *logged, end]
    assert drawn(dataclasses.replace(loaded, start=[])) == [*logged, end]
    assert drawn(dataclasses.replace(loaded, start=[], topology=[])) == [(0, end[1]), end]


def test_unfinished_run_with_a_torn_line(copy, loaded, tmp_path):
    (copy / "summary.json").unlink()
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "step": 12, "lo')
    run = load_run(copy)
    assert (run.train, run.topology, run.evaluation) == (loaded.train, loaded.topology, loaded.evaluation)
    page = Page(write_report([run], tmp_path / "report"))
    assert "unfinished at step 8 of 8" in page.text


def test_without_rank_term_there_is_no_figure_of_k(copy, loaded, tmp_path):
    metrics = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**line, "ranks": []} if line["event"] == "topology" else line) for line in metrics]
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    config = load_config(copy / "config.yaml", ["rank.lambda=0.0"])
    (copy / "config.yaml").write_text(dump_config(config))
    write_report([load_run(copy)], tmp_path / "report")
    page = check_pictures(tmp_path / "report", {"training", "layers", "cost"})
    assert "no figure of k" in page.text and "rank.lambda is 0" in page.text


def variant(run, label, top1, seed=0, density=None):
    """The run as if it had come out otherwise; with `density`, every layer keeps that share."""
    layers = run.layers
    if density is not None:
        layers = tuple(dataclasses.replace(layer, nonzero=round(density * layer.weights)) for layer in layers)
    return dataclasses.replace(
        run,
        label=label,
        layers=layers,
        summary={**run.summary, "top1": top1},
        config=run.config.model_copy(update={"seed": seed}),
    )


def test_report_of_several_runs(loaded, tmp_path):
    unfinished = dataclasses.replace(loaded, label="set", summary=None, step=4, total_steps=8)
    runs = [
        variant(loaded, "RPG", 70.0),
        variant(loaded, "RPG", 73.0, seed=1),
        variant(loaded, "<b>GMP & $x$", 60.0),
        variant(loaded, "RPG", 50.0, density=0.02),
        variant(loaded, "dense", 80.0, density=1.0),
        unfinished,
    ]
    path = write_report(runs, tmp_path / "report")
    page = check_pictures(path.parent, {"accuracy", "rank"})
    table = page.text[page.text.index("Methods") : page.text.index("Runs")]
    assert "2 (0, 1)71.50 ± 2.12" in table and "set" not in table and "60.00" in table
    assert "60.00 ±" not in table, "a single run has no deviation"
    assert "<b>GMP & $x$" in table and "b" not in page.tags
    assert "unfinished at step 4 of 8" in page.text and "1 of 6 runs" in page.text
    assert "differ in" not in page.text
    groups = by_label_and_sparsity(runs)
    assert [(key, len(members)) for key, members in groups.items() if key[0] == "RPG"] == [
        (("RPG", 80.0), 2),
        (("RPG", 98.0), 1),
    ]


def test_seeds_that_are_not_of_one_experiment_are_pointed_out(loaded, tmp_path):
    config = loaded.config
    rank = config.rank.model_copy(update={"lambda_": 3.0})
    other = dataclasses.replace(loaded, config=config.model_copy(update={"rank": rank, "seed": 1}))
    assert "differ in rank.lambda." in Page(write_report([loaded, other], tmp_path)).text
    model = config.model.model_copy(update={"name": "cifar_resnet20"})
    other = dataclasses.replace(loaded, label="x", config=config.model_copy(update={"model": model}))
    page = Page(write_report([loaded, other], tmp_path))
    assert "do not compare: cifar_resnet8 on fashion_mnist, cifar_resnet20 on fashion_mnist" in page.text


def test_a_label_that_matplotlib_would_leave_out_and_a_line_of_one_point(loaded):
    labels = "_mine", "rpg"
    figure = figures.figure_by_sparsity(
        by_label_and_sparsity([dataclasses.replace(loaded, label=label) for label in labels]), loaded.figure
    )
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == list(labels)
    axes = figures.training(dataclasses.replace(loaded, train=loaded.train[:1])).axes
    assert [axes[i].lines[0].get_marker() for i in (1, 3)] == ["o", "o"]
    assert figures.training(loaded).axes[1].lines[0].get_marker() == "None"


def test_only_unfinished_runs(loaded, tmp_path):
    run = dataclasses.replace(loaded, summary=None, evaluation=[])
    page = Page(write_report([run, run], tmp_path / "report"))
    assert "No run is finished" in page.text and page.sources == []


def test_shape_and_classes_without_the_dataset(tmp_path):
    """Class folders decide about the classes; where they are not at hand, the checkpoint tells."""
    (tmp_path / "config.yaml").write_text(
        "model: {name: cifar_resnet8}\ndata: {name: imagenet, root: /nowhere, image_size: 16}\n"
    )
    network = create_model("cifar_resnet8", 7, 3, 16)
    sparsify(network)
    state = {"model": "cifar_resnet8", "step": 3, "total_steps": 9, "seconds": 1.0}
    ms.save_checkpoint(
        [{"name": p.name, "data": p} for p in network.get_parameters()],
        str(tmp_path / "last.ckpt"),
        append_dict={"rpg_state": json.dumps(state)},
        crc_check=True,
    )
    (tmp_path / "metrics.jsonl").write_text("")
    run = load_run(tmp_path)
    assert run.layers[-1].shape == (7, 64) and run.measured is None
    assert run.layers[0].dense_flops == 16 * 27 * 256 and run.state == "unfinished at step 3 of 9"
    write_report([run], tmp_path / "report")
    check_pictures(tmp_path / "report", {"training", "layers", "cost"})


def test_what_is_known_of_a_dataset_is_so():
    for keys in ({}, {"image_size": 40}):
        config = DataConfig(**keys)
        dataset = load_dataset(config, 0)
        assert known_shape(config) == ((dataset.channels, dataset.size, dataset.size), dataset.classes)
    shapes = {name: known_shape(DataConfig(name=name)) for name in DATASETS}
    assert shapes["cifar100"] == ((3, 32, 32), 100) and shapes["imagenet"] == ((3, 224, 224), None)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:-size])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "no config": (lambda run: (run / "config.yaml").unlink(), "not the folder of a run: it has no config"),
    "not started": (
        lambda run: [path.unlink() for path in run.glob("*.*") if path.name != "config.yaml"],
        "the run was not started",
    ),
    "no checkpoint yet": (lambda run: (run / "last.ckpt").unlink(), "no checkpoint yet"),
    "truncated": (lambda run: cut(run / "last.ckpt", 1000), "last.ckpt: truncated"),
    "flipped": (lambda run: flip(run / "last.ckpt"), "last.ckpt: damaged: its checksum is wrong"),
    "no metrics": (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl: cannot be read"),
    "line": (lambda run: prepend(run, "{not json"), "metrics.jsonl: line 1: not JSON"),
    "binary line": (lambda run: prepend(run, "\0\0\0"), "metrics.jsonl: line 1: not JSON"),
    "no mapping": (lambda run: prepend(run, "[1]"), "line 1: not a mapping"),
    "no step": (lambda run: prepend(run, '{"event": "train", "loss": 1.0, "lr": 0.1}'), "line 1: step is missing"),
    "text": (
        lambda run: prepend(run, '{"event": "train", "step": 1, "loss": "x", "lr": 0.1}'),
        "line 1: loss: 'x' is not a finite number",
    ),
    "ranks": (
        lambda run: prepend(run, '{"event": "topology", "step": 1, "density": 0.5, "ranks": [1, 2]}'),
        "step 1: ranks is not a list of 7 integers",
    ),
    "summary": (lambda run: cut(run / "summary.json", 5), "summary.json: not JSON"),
    "another network": (
        lambda run: (run / "config.yaml").write_text("model: {name: cifar_resnet20}"),
        "another network than the configuration's",
    ),
}


def prepend(run, line):
    path = run / "metrics.jsonl"
    path.write_text(line + "\n" + path.read_text())


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_refused(copy, name):
    damage, words = DAMAGES[name]
    damage(copy)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        load_run(copy)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


def test_folder_that_cannot_be_written(loaded, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        write_report([loaded], tmp_path / "file")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], ["nowhere", "no such folder"]),
        (["out", "elsewhere"], ["--output_dir", "required"]),
        (["out", "out/../out", "--output_dir", "both"], ["out/../out", "given twice"]),
        (["x" * 300], ["File name too long"]),
        ([], ["RUN_FOLDER"]),
    ],
)
def test_mistakes_at_the_door(run, arguments, words):
    refused(door("report", *arguments, cwd=run.parent), *words)
