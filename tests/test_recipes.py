"""The recipes under config/: what they state, that their calendars arrive, and that they train."""

import multiprocessing
import re

import mindspore as ms
import numpy as np
import pytest

import image_files
from conftest import PROJECT
from rpg_ms.config import changed_keys, load_config
from rpg_ms.errors import UserError
from rpg_ms.pruning.calendar import UpdateCalendar
from rpg_ms.tasks import create_task
from rpg_ms.training import build
from rpg_ms.training.distributed import ALONE

QUICK = ("quickstart", "maskrcnn_small_nuclei_80")
NAMES = sorted(file.stem for file in (PROJECT / "config").glob("*.yaml") if file.stem not in QUICK)
TRAINING_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167, "coco": 118_287}
DEVICES = {"cifar10": 1, "cifar100": 1, "imagenet": 8, "coco": 8}  # that the recipes' learning rates are for
PARTS = re.compile(r"(?P<model>\w+)_(?P<data>[a-z]+\d*)_(?P<sparsity>\d\d)(?P<variant>_\w+)?")


def recipe(name, *overrides):
    return load_config(PROJECT / f"config/{name}.yaml", overrides)


def calendar_of(pruning, steps):
    """The calendar of a whole run."""
    return UpdateCalendar(
        steps,
        pruning.update_every,
        pruning.prune_until,
        pruning.freeze_after,
        pruning.density,
        pruning.schedule,
        pruning.warmup_updates,
    )


def network_of(name):
    config = recipe(name)
    return config.model.name, config.data.name


# The sparsest recipe of each network and dataset stands for the others where a test takes seconds.
# A detector's takes minutes in this mode: tests/tasks/test_detection.py trains a small one.
SPARSEST = {network_of(name): name for name in sorted(NAMES, key=lambda name: PARTS.fullmatch(name)["sparsity"])}


@pytest.mark.parametrize("name", NAMES)
def test_recipes_of_a_network_train_alike(name):
    changed = changed_keys(recipe(name), recipe(SPARSEST[network_of(name)]))
    free = {"pruning.density", "rank.lambda", "rank.delta", "model.pretrained", "output_dir"}
    if "_8epochs" in name:  # one protocol, two methods
        free |= {f"pruning.{key}" for key in ("method", "schedule", "allocation", "prune_until", "freeze_after")}
    assert set(changed) <= free


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_what_its_name_says(name):
    config, parts = recipe(name), PARTS.fullmatch(name)
    assert parts["model"] in config.model.name and parts["data"] == config.data.name
    assert config.pruning.density == pytest.approx(1 - int(parts["sparsity"]) / 100, abs=1e-12)
    assert config.output_dir == f"runs/{name}"
    assert (config.model.pretrained is None) == (
        parts["variant"] == "_scratch"
        or parts["data"] == "cifar100"
        or parts["model"] in ("resnet32", "vgg19", "deit_small")
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_calendar_of_the_whole_run_reaches_its_target(name):
    config = recipe(name)
    data = config.data.name
    steps_per_epoch = TRAINING_IMAGES[data] // (config.train.batch_size * DEVICES[data])
    rates, pruning = build.learning_rates(config, steps_per_epoch), config.pruning
    assert len(rates) == config.train.epochs * steps_per_epoch
    assert max(rates) == pytest.approx(config.optimizer.lr) and rates[-1] < 0.02 * config.optimizer.lr
    calendar = calendar_of(pruning, len(rates))
    before = calendar.density_at(calendar.reach_step - 1)
    assert calendar.density_at(calendar.reach_step) == calendar.density_at(len(rates)) == pruning.density < before
    # The last of many small cuts, and time left to recover in.
    assert before < 1.1 * pruning.density and calendar.steps()[-1] < 0.91 * len(rates)


@pytest.mark.parametrize(
    "name, rank_lambda, delta",
    [
        ("resnet50_imagenet_80", 0.5, 0.2),
        ("resnet50_imagenet_90", 0.5, 0.1),
        ("resnet50_imagenet_95", 3, 0.2),
        ("resnet50_imagenet_98", 4, 0.2),
        ("resnet50_imagenet_90_scratch", 0.5, 0.1),
        ("resnet50_imagenet_95_scratch", 3, 0.2),
    ],
)
def test_numbers_of_the_released_imagenet_runs(name, rank_lambda, delta):
    config = recipe(name)
    train, optimizer, pruning, rank = config.train, config.optimizer, config.pruning, config.rank
    assert (train.epochs, train.batch_size, train.label_smoothing) == (100, 128, 0.1)
    assert (
        optimizer.name,
        optimizer.lr,
        optimizer.momentum,
        optimizer.weight_decay,
        optimizer.decay_norm_and_bias,
    ) == ("sgd", 0.4, 0.9, 1e-4, False)
    assert (config.schedule.name, config.schedule.warmup_epochs, config.schedule.end_lr) == ("cosine", 5, 0)
    assert (pruning.method, pruning.schedule, pruning.allocation) == ("rpg", "exponential", "global")
    assert (pruning.alpha, pruning.update_every, pruning.prune_until, pruning.freeze_after) == (0.3, 100, 0.9, 0.901)
    assert (rank.lambda_, rank.delta, rank.every, rank.include_dense) == (rank_lambda, delta, "update", False)


def test_the_recipe_of_the_nuclei_has_the_whole_target_before_its_end():
    config = recipe("maskrcnn_small_nuclei_80")
    task = create_task(config, ALONE)
    total = config.train.epochs * task.steps_per_epoch
    pruning = config.pruning
    calendar = calendar_of(pruning, total)
    assert calendar.density_at(calendar.reach_step) == 0.2 and calendar.reach_step < 0.6 * total
    fullest = max(len(picture.annotations) for picture in task.dataset.train.pictures)
    assert fullest <= config.detection.boxes_per_image


def test_numbers_of_the_eight_epoch_comparison():
    config = recipe("resnet20_cifar10_98_8epochs")
    train, optimizer, pruning, rank = config.train, config.optimizer, config.pruning, config.rank
    assert (train.epochs, train.batch_size, train.label_smoothing) == (8, 128, 0)
    assert config.data.augment == "crop_flip"
    assert (
        optimizer.name,
        optimizer.lr,
        optimizer.momentum,
        optimizer.nesterov,
        optimizer.weight_decay,
        optimizer.decay_norm_and_bias,
    ) == ("sgd", 0.1, 0.9, False, 5e-4, True)
    assert (pruning.schedule, pruning.alpha, pruning.update_every, pruning.prune_until, pruning.freeze_after) == (
        "exponential",
        0.3,
        50,
        0.8,
        0.801,
    )
    assert (rank.lambda_, rank.delta, rank.every) == (0.5, 0.1, "update")
    steps = np.arange(8 * 390)  # cosine to 0 from the very first step
    expected = 0.05 * (1 + np.cos(np.pi * steps / 3120))
    np.testing.assert_allclose(build.learning_rates(config, 390), expected, atol=1e-6)

    variant = recipe("resnet20_cifar10_98_8epochs_erk").pruning
    assert (
        variant.method,
        variant.schedule,
        variant.allocation,
        variant.alpha,
        variant.update_every,
        variant.prune_until,
        variant.freeze_after,
    ) == ("rpg_erk", "cubic", "erk", 0.3, 50, 0.6, 0.9)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Folders with a few images of noise in the layout of each dataset."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("cifar10", "cifar100", "imagenet")}
    image_files.cifar10(folders["cifar10"])
    image_files.cifar100(folders["cifar100"])
    image_files.class_folders(folders["imagenet"])
    return folders


def reduced(name, roots):
    """A recipe for eight small images: an epoch is one step, every second step an update."""
    data = recipe(name).data.name
    size, classes = {"imagenet": (32, 1000), "cifar10": (16, 10), "cifar100": (16, 100)}[data]
    return recipe(
        name,
        f"data.root={roots[data]}",
        f"data.image_size={size}",
        "data.limit=8",
        "data.workers=1",
        f"model.num_classes={classes}",
        "train.epochs=8",
        "train.batch_size=8",
        "pruning.update_every=2",
        "device_target=CPU",
        "mode=pynative",
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "cifar100" in name else ())
        for name in SPARSEST.values()
        if "coco" not in name
    ],
)
def test_a_recipe_trains_and_prunes(name, roots):
    """Two steps and a topology update in between.

    In a process of its own, with which the networks' gigabytes go: MindSpore does not give them back.
    """
    process = multiprocessing.get_context("spawn").Process(target=train_and_prune, args=(name, roots))
    process.start()
    process.join()
    assert process.exitcode == 0  # what failed is on stderr


def train_and_prune(name, roots):
    ms.set_context(mode=ms.PYNATIVE_MODE)  # compiling takes longer than three steps do
    config = reduced(name, roots)
    ms.set_seed(0)
    task = create_task(config, ALONE)
    network, found = build.build_network(config, task)  # from scratch, as the pretrained weights are not here
    step, _ = build.build_train_step(config, task, network, found.layers, "CPU", ALONE)
    layers = found.layers
    plain, update, last = (batch.values() for batch in task.train_batches(0, 3))

    before = weights(layers)
    assert np.isfinite(float(step(*plain).asnumpy()))
    assert step.record is None and found.nonzero == found.prunable
    assert all((w != b).any() for w, b in zip(weights(layers), before))  # the step reaches every layer

    assert np.isfinite(float(step(*update).asnumpy()))
    kept = round(step.pruner.calendar.density_at(2) * found.prunable)
    assert step.record.nonzero == found.nonzero == kept < found.prunable
    in_rank_term = [layer for layer in layers if config.rank.include_dense or layer.kind == "conv"]
    assert len(step.record.ranks) == len(in_rank_term) and -1 <= step.record.rank_loss < 0
    masks = [layer.mask.asnumpy().copy() for layer in layers]

    before = weights(layers)
    assert np.isfinite(float(step(*last).asnumpy()))
    for layer, w, b, mask in zip(layers, weights(layers), before, masks):
        assert (w != b).any() and not w[~mask].any(), layer.name
        assert np.array_equal(layer.mask.asnumpy(), mask), layer.name


def weights(layers):
    return [layer.weight.asnumpy().copy() for layer in layers]


@pytest.mark.parametrize(
    "name, file",
    [
        ("resnet50_imagenet_98", "pretrained/resnet50.pth"),
        ("resnet20_cifar10_98_8epochs", "pretrained/resnet20-12fca82f.th"),
    ],
)
def test_missing_pretrained_weights_are_named(name, file, roots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = reduced(name, roots)
    with pytest.raises(UserError, match=f"^model.pretrained: {file}: no such file$"):
        build.build_network(config, create_task(config, ALONE), config.model.pretrained)
