import numpy as np
import pytest
from PIL import Image

from rpg_ms.config import DataConfig
from rpg_ms.data.datasets import ImageSet, load_dataset
from rpg_ms.data.pipeline import EvalSamples, TrainSamples, batches


def numbered(n):
    """Images that carry their number, so that what comes out tells where it came from."""
    return ImageSet(lambda i: Image.fromarray(np.full((4, 4), i, np.uint8)), np.arange(n, dtype=np.int32))



TO_ARRAY = [lambda image: np.asarray(image, np.float32)[None]]


def labels(samples):
    return [int(samples[i][1]) for i in range(len(samples))]


def test_an_epoch_is_a_permutation_and_the_next_another():
    samples = TrainSamples(numbered(23), TO_ARRAY, 4, seed=1, first_step=0, last_step=10)
    assert samples.steps_per_epoch == 5 and len(samples) == 40
    drawn = labels(samples)
    first, second = drawn[:20], drawn[20:]
    assert len(set(first)) == len(set(second)) == 20 and first != second
    assert [int(samples[i][0][0, 0, 0]) for i in range(40)] == drawn


def test_any_step_can_be_the_first():
    """What a resumed run sees is what the uninterrupted one would have seen, also in the middle of an epoch."""
    dataset = load_dataset(DataConfig(), 0)
    make = lambda first: TrainSamples(dataset.train, dataset.train_transform, 8, 3, first, 3000)
    whole, late = make(0), make(2217)
    for i in (0, 5, 8, 60):
        image, label = late[i]
        wanted, wanted_label = whole[2217 * 8 + i]
        assert label == wanted_label and np.array_equal(image, wanted)


def test_augmentation_depends_on_epoch_and_seed_but_not_on_order_of_calls():
    dataset = load_dataset(DataConfig(), 0)
    samples = TrainSamples(dataset.train, dataset.train_transform, 8, 3, 0, 3000)
    once = samples[17][0]
    samples[40]
    assert np.array_equal(samples[17][0], once)
    image = int(samples._epoch_order(0)[17])
    later = int(np.flatnonzero(samples._epoch_order(1) == image)[0]) + 1500 * 8
    assert samples[later][1] == dataset.train.labels[image] and not np.array_equal(samples[later][0], once)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_every_global_batch_without_overlap(ranks):
    alone = labels(TrainSamples(numbered(53), TO_ARRAY, 4 * ranks, 1, 0, 6))
    shares = [labels(TrainSamples(numbered(53), TO_ARRAY, 4, 1, 0, 6, rank, ranks)) for rank in range(ranks)]
    for step in range(6):
        together = [label for share in shares for label in share[4 * step:4 * step + 4]]
        assert together == alone[4 * ranks * step:4 * ranks * (step + 1)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 50])
def test_evaluation_sees_every_image_once_at_any_world_size(n, ranks):
    shares = [labels(EvalSamples(numbered(n), TO_ARRAY, 4, rank, ranks)) for rank in range(ranks)]
    assert sorted(label for share in shares for label in share if label >= 0) == list(range(n))
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) % 4 == 0


def test_batches_come_in_order_with_workers_too():
    samples = TrainSamples(numbered(64), TO_ARRAY, 8, 1, 0, 12)
    for workers in (1, 2):
        found = [batch[1].asnumpy().tolist() for batch in batches(samples, 8, workers)]
        assert [label for batch in found for label in batch] == labels(samples)


def test_validation_part_is_cut_out_of_the_training_images():
    whole, cut = load_dataset(DataConfig(), 0), load_dataset(DataConfig(validation=0.25), 0)
    assert (len(cut.train), len(cut.test)) == (9000, 3000)
    pixels = lambda images: {images.image(i).tobytes() for i in range(len(images))}
    assert pixels(cut.train).isdisjoint(pixels(cut.test))
    assert pixels(cut.train) | pixels(cut.test) == pixels(whole.train)
    assert pixels(cut.test).isdisjoint(pixels(whole.test))
