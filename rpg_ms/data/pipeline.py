"""From images to batches, reproducible to the bit from any step on.

Which image a training step sees, and how it is augmented, depends on nothing but the seed and the step: every sample
draws from a generator seeded by (seed, epoch, image). So training can go on in the middle of an epoch, and the batches
do not depend on the number of workers; with the global batch held fixed, not on the number of devices either, but for
mixup and cutmix, which mix the images of one device.
"""

from __future__ import annotations

import multiprocessing
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional, Protocol, Union

import mindspore as ms
import numpy as np
from mindcv.data.mixup import Mixup

from rpg_ms.data.transforms import Sample, Transform, apply
from rpg_ms.data.workers import Workers
from rpg_ms.errors import CutShort, UserError


class Images(Protocol):
    """Images with what belongs to them, in random access."""

    def __len__(self) -> int:
        """How many there are."""

    def sample(self, i: int) -> Sample:
        """Image `i`."""


class TrainSamples:
    """The samples of one rank's training steps `first_step + 1 .. last_step`, epoch after epoch, in random access.

    Every epoch is a new permutation of all images; the images left over after the last full global batch are dropped.
    """

    def __init__(
        self,
        images: Images,
        transform: Sequence[Transform],
        batch_size: int,
        seed: int,
        first_step: int,
        last_step: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step
        self.last_step = last_step
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = len(images) // (batch_size * world_size)
        self._order = (None, None)

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.batch_size

    def __getitem__(self, i: int) -> Sample:
        step, slot = divmod(int(i), self.batch_size)
        epoch, step = divmod(self.first_step + step, self.steps_per_epoch)
        position = (step * self.world_size + self.rank) * self.batch_size + slot
        image = int(self._epoch_order(epoch)[position])
        _seed_generators(self.seed, epoch, image)
        return apply(self.transform, self.images.sample(image))

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.images))
        return self._order[1]


class EvalSamples:
    """One rank's share of a set of images, in order; padded to whole batches with repeats, which `padding` marks.

    Args:
        padding: what a repeat has in the place of its own, such as `{"label": -1}`.
    """

    def __init__(
        self,
        images: Images,
        transform: Sequence[Transform],
        batch_size: int,
        padding: Mapping[str, Any],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images
        self.transform = transform
        self.padding = padding
        self.mine = range(rank, len(images), world_size)
        share = -(-len(images) // world_size)  # every rank runs as many batches as the one with most images
        self.length = -(-share // batch_size) * batch_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Sample:
        i = int(i)
        if i < len(self.mine):
            return apply(self.transform, self.images.sample(self.mine[i]))
        return {**apply(self.transform, self.images.sample(0)), **self.padding}


class Mix:
    """Mixup (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899), by the batch.

    Each image is mixed with the one at its place in the reversed batch. With both, each batch takes one of
    them at random. What is drawn depends only on the seed, the step and the rank.

    Args:
        mixup, cutmix: alpha of the Beta distribution of the shares; 0: off, but not for both.
        classes: number of classes.
        seed: of the run.
        first_step: steps before the first batch.
        rank: of the process.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int, seed: int, first_step: int, rank: int = 0) -> None:
        self.mix = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=classes)
        self.seed = seed
        self.first_step = first_step
        self.rank = rank

    def __call__(self, number: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Batch number `number`, mixed: images, and for labels class shares, float32 `[b, classes]`."""
        # One more number than a sample's seed has, so that no sample draws the same.
        _seed_generators(self.seed, self.first_step + number, self.rank, MIX)
        images, labels = self.mix(batch["image"], batch["label"])
        return {"image": images, "label": labels}


MIX = 1
AHEAD = 2  # batches that wait in this process


class _Batches:
    """Whole batches in random access: arrays by name."""

    def __init__(self, samples: Union[TrainSamples, EvalSamples], batch_size: int, mix: Optional[Mix]) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.mix = mix

    def __len__(self) -> int:
        return len(self.samples) // self.batch_size

    def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
        first = batch * self.batch_size
        rows = [self.samples[i] for i in range(first, first + self.batch_size)]
        made = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return made if self.mix is None else self.mix(batch, made)


def batches(
    samples: Union[TrainSamples, EvalSamples], batch_size: int, workers: int = 1, mix: Optional[Mix] = None
) -> Iterator[dict[str, ms.Tensor]]:
    """Iterate once over `samples` in order.

    Args:
        samples: dicts of arrays in random access, a whole number of batches.
        batch_size: images a batch.
        workers: 1 works in a thread of this process, more are worker processes, at most one a core; the
            batches are the same.
        mix: `Mix`, or None.

    Yields:
        Dicts of Tensors: what a sample has by name, stacked. Of a classifier that is "image" `[b, c, h, w]` float32 and
        "label" `[b]` int32, or `[b, classes]` float32 when mixed.

    Raises:
        CutShort: an image cannot be read (status 2), or a worker is dead (status 1).
    """
    source = _Batches(samples, batch_size, mix)
    workers = min(workers, multiprocessing.cpu_count(), len(source))
    made = Workers(source, workers) if workers > 1 else source
    thread = ThreadPoolExecutor(1)  # waiting for it, the main thread hears signals
    waiting = deque()
    try:
        for batch in range(len(source)):
            while len(waiting) <= AHEAD and batch + len(waiting) < len(source):
                waiting.append(thread.submit(made.__getitem__, batch + len(waiting)))
            yield {name: ms.Tensor.from_numpy(array) for name, array in waiting.popleft().result().items()}
    except CutShort:
        raise
    except UserError as error:
        raise CutShort(str(error), 2) from None
    finally:
        if workers > 1:
            made.end()
        thread.shutdown(cancel_futures=True)


def _seed_generators(*numbers: int) -> None:
    """Seed the two generators that transforms on PIL images and mindcv's Mixup draw from."""
    state = np.random.SeedSequence(numbers).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(state[1])
