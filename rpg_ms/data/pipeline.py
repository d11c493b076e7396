"""From images to batches, reproducible to the bit from any step on.

Which image a training step sees, and how it is augmented, depends on nothing but the seed and the step: every sample
draws from a generator seeded by (seed, epoch, image). So training can go on in the middle of an epoch, and the batches
do not depend on the number of workers; with the global batch held fixed, not on the number of devices either.
"""
from __future__ import annotations

import random

import mindspore.dataset as ds
import numpy as np


class TrainSamples:
    """The samples of one rank's training steps `first_step + 1 .. last_step`, epoch after epoch, in random access.

    Every epoch is a new permutation of all images; the images left over after the last full global batch are dropped.
    """

    def __init__(self, images, transform, batch_size, seed, first_step, last_step, rank=0, ranks=1):
        self.images = images
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step
        self.last_step = last_step
        self.rank = rank
        self.ranks = ranks
        self.steps_per_epoch = len(images) // (batch_size * ranks)
        self._order = (None, None)

    def __len__(self):
        return (self.last_step - self.first_step) * self.batch_size

    def __getitem__(self, i):
        step, slot = divmod(int(i), self.batch_size)
        epoch, step = divmod(self.first_step + step, self.steps_per_epoch)
        position = (step * self.ranks + self.rank) * self.batch_size + slot
        image = int(self._epoch_order(epoch)[position])
        # The transforms of mindspore.dataset draw from these two generators when they work on PIL images.
        state = np.random.SeedSequence([self.seed, epoch, image]).generate_state(2)
        random.seed(int(state[0]))
        np.random.seed(state[1])
        return _apply(self.transform, self.images.image(image)), self.images.labels[image]

    def _epoch_order(self, epoch):
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.images))
        return self._order[1]


class EvalSamples:
    """One rank's share of a set of images, in order; padded to whole batches with repeats that have the label -1."""

    def __init__(self, images, transform, batch_size, rank=0, ranks=1):
        self.images = images
        self.transform = transform
        self.mine = range(rank, len(images), ranks)
        share = -(-len(images) // ranks)  # every rank runs as many batches as the one with most images
        self.length = -(-share // batch_size) * batch_size

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        i = int(i)
        image = self.mine[i] if i < len(self.mine) else 0
        label = self.images.labels[image] if i < len(self.mine) else np.int32(-1)
        return _apply(self.transform, self.images.image(image)), label


def batches(samples, batch_size, workers=1):
    """Iterate once over `samples` in order: tuples of Tensors `(images [b, c, h, w] float32, labels [b] int32)`."""
    dataset = ds.GeneratorDataset(samples, ["image", "label"], shuffle=False, num_parallel_workers=workers,
                                  python_multiprocessing=workers > 1)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    return dataset.create_tuple_iterator(num_epochs=1, do_copy=False)


def _apply(transforms, image):
    for transform in transforms:
        image = transform(image)
    return image
