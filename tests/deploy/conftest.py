"""Shared by the tests of exports: PyNative mode, a task, a small network."""

import mindspore as ms
import pytest

from networks import pruned
from rpg_ms.config import Config, DataConfig, ModelConfig, TrainConfig
from rpg_ms.models import create_model
from rpg_ms.tasks import create_task
from rpg_ms.training.distributed import ALONE


@pytest.fixture(autouse=True, scope="module")
def pynative():
    """Exports compile in any mode; with this one nothing else has to be."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="module")
def task():
    return create_task(
        Config(
            model=ModelConfig(name="cifar_resnet8"),
            data=DataConfig(limit=96),
            train=TrainConfig(batch_size=8, eval_batch_size=48),
        ),
        ALONE,
    )


@pytest.fixture(scope="module")
def small():
    ms.set_seed(0)
    return pruned(create_model("cifar_resnet8", 10, 1, width=0.25))
