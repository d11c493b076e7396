"""Image classification."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindcv.loss import create_loss
from mindspore import nn, ops

from rpg_ms.data.datasets import load_dataset
from rpg_ms.data.pipeline import EvalSamples, Mix, TrainSamples, batches
from rpg_ms.data.transforms import planes
from rpg_ms.errors import UserError
from rpg_ms.models.compiling import compile_graph


class Classification:
    """Images in, one class each out; measured by top-1 accuracy in percent.

    Args:
        config: `rpg_ms.config.Config`; read are `data`, `train` and `seed`.
        ranks: `rpg_ms.training.distributed.Ranks`, which share the images.

    Raises:
        UserError: the dataset cannot be read, or has fewer images than a batch on every rank.
    """

    metric = "top1"  # the figure by which the best checkpoint is chosen

    def __init__(self, config, ranks):
        self.config = config
        self.ranks = ranks
        self._count = None
        self.dataset = load_dataset(config.data, config.seed)
        self.classes = config.model.num_classes or self.dataset.classes
        if self.classes < self.dataset.classes:
            raise UserError(f"model.num_classes: {self.classes} is less than the {self.dataset.classes} classes of "
                            f"{config.data.name}")
        self.input_shape = (self.dataset.channels, self.dataset.size, self.dataset.size)
        self.steps_per_epoch = len(self.dataset.train) // (config.train.batch_size * ranks.size)
        if self.steps_per_epoch < 1:
            across = f" on each of {ranks.size} ranks" if ranks.size > 1 else ""
            raise UserError(f"train.batch_size: {config.train.batch_size}{across} is more than the "
                            f"{len(self.dataset.train)} training images of {config.data.name}")
        if (config.train.mixup or config.train.cutmix) and config.train.batch_size % 2:
            raise UserError(f"train.batch_size: {config.train.batch_size} is odd, which mixup and cutmix "
                            "cannot mix")

    def train_batches(self, first_step, last_step):
        """This rank's batches of steps `first_step + 1 .. last_step`."""
        batch_size = self.config.train.batch_size
        samples = TrainSamples(self.dataset.train, self.dataset.train_transform, batch_size, self.config.seed,
                               first_step, last_step, self.ranks.rank, self.ranks.size)
        return batches(samples, batch_size, self.config.data.workers, self._mix(first_step))

    def test_batches(self):
        """This rank's share of the test images, each once; labels of padding are -1."""
        batch_size = self._test_batch_size()
        samples = EvalSamples(self.dataset.test, self.dataset.test_transform, batch_size, self.ranks.rank,
                              self.ranks.size)
        return batches(samples, batch_size, self.config.data.workers)

    def _test_batch_size(self):
        share = -(-len(self.dataset.test) // self.ranks.size)
        return min(self.config.train.eval_batch_size, share)

    def zero_batch(self, batch_size):
        """A training batch of zeros: arrays of the shapes and types that `train_batches` has."""
        mixed = self._mix(0) is not None
        labels = np.zeros((batch_size, self.classes), np.float32) if mixed else np.zeros(batch_size, np.int32)
        return np.zeros((batch_size, *self.input_shape), np.float32), labels

    def test_images(self, count, raw=False):
        """The first `count` test images (repeated from the start if there are fewer), `[count, channels, size, size]`
        float32: normalised, or `raw` pixels, 0 to 255.
        """
        test, transform = self.dataset.test, self.dataset.test_transform
        if raw:
            transform = [*transform[:-1], planes]  # the last one normalises
        samples = EvalSamples(test.subset(np.arange(count) % len(test)), transform, count)
        return np.stack([samples[i][0] for i in range(count)]).astype(np.float32)

    def with_loss(self, network):
        """The network with cross-entropy, as a Cell from a batch to a scalar."""
        return _WithLoss(network, create_loss("CE", label_smoothing=self.config.train.label_smoothing))

    def _mix(self, first_step):
        train = self.config.train
        if not train.mixup and not train.cutmix:
            return None
        return Mix(train.mixup, train.cutmix, self.classes, self.config.seed, first_step, self.ranks.rank)

    def evaluate(self, network):
        """`{"top1": percent}` over all test images of all ranks; leaves the network in inference mode."""
        count = self.compile_evaluation(network)
        correct = sum(int(count(images, labels).asnumpy()) for images, labels in self.test_batches())
        correct = int(self.ranks.gather(np.int64(correct)).sum())
        return {"top1": 100 * correct / len(self.dataset.test)}

    def compile_evaluation(self, network):
        """The cell that evaluates a network, in graph mode compiled and tried on zeros; the network is left in inference
        mode.

        Raises:
            UserError: the network does not compile, or run so.
        """
        if self._count is None or self._count.network is not network:  # one cell for all evaluations: compiled once
            count, size = _CountCorrect(network).set_train(False), self._test_batch_size()
            zeros = np.zeros((size, *self.input_shape), np.float32), np.zeros(size, np.int32)
            compile_graph(count, zeros, network, self.config.model.name, "inference", run=True)
            self._count = count
        return self._count.set_train(False)


class _WithLoss(nn.Cell):
    def __init__(self, network, loss):
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss

    def construct(self, images, labels):
        return self.loss(self.network(images), labels)


class _CountCorrect(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images, labels):
        predicted = ops.argmax(self.network(images), 1).astype(ms.int32)
        return (predicted == labels).astype(ms.int32).sum()
