import numpy as np
import pytest
from PIL import Image

from rpg_ms.config import DataConfig
from rpg_ms.data.datasets import ImageSet, load_dataset
from rpg_ms.data.pipeline import EvalSamples, Mix, TrainSamples, batches
from rpg_ms.data.transforms import OnImage
from rpg_ms.errors import UserError


def numbered(n):
    """Images that carry their number, so that what comes out tells where it came from."""
    return ImageSet(lambda i: Image.fromarray(np.full((4, 4), i, np.uint8)), np.arange(n, dtype=np.int32))


TO_ARRAY = [OnImage(lambda image: np.asarray(image, np.float32)[None])]
PADDING = {"label": np.int32(-1)}


def labels(samples):
    return [int(samples[i]["label"]) for i in range(len(samples))]


def test_an_epoch_is_a_permutation_and_the_next_another():
    samples = TrainSamples(numbered(23), TO_ARRAY, 4, seed=1, first_step=0, last_step=10)
    assert samples.steps_per_epoch == 5 and len(samples) == 40
    drawn = labels(samples)
    first, second = drawn[:20], drawn[20:]
    assert len(set(first)) == len(set(second)) == 20 and first != second
    assert [int(samples[i]["image"][0, 0, 0]) for i in range(40)] == drawn


def test_any_step_can_be_the_first():
    """What a resumed run sees is what the uninterrupted one would have seen, also in the middle of an epoch."""
    dataset = load_dataset(DataConfig(), 0)
    make = lambda first: TrainSamples(dataset.train, dataset.train_transform, 8, 3, first, 3000)
    whole, late = make(0), make(2217)
    for i in (0, 5, 8, 60):
        sample, wanted = late[i], whole[2217 * 8 + i]
        assert sample["label"] == wanted["label"] and np.array_equal(sample["image"], wanted["image"])


def test_augmentation_depends_on_epoch_and_seed_but_not_on_order_of_calls():
    dataset = load_dataset(DataConfig(), 0)
    samples = TrainSamples(dataset.train, dataset.train_transform, 8, 3, 0, 3000)
    once = samples[17]["image"]
    samples[40]
    assert np.array_equal(samples[17]["image"], once)
    image = int(samples._epoch_order(0)[17])
    later = int(np.flatnonzero(samples._epoch_order(1) == image)[0]) + 1500 * 8
    assert samples[later]["label"] == dataset.train.labels[image]
    assert not np.array_equal(samples[later]["image"], once)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_every_global_batch_without_overlap(world_size):
    alone = labels(TrainSamples(numbered(53), TO_ARRAY, 4 * world_size, 1, 0, 6))
    shares = [labels(TrainSamples(numbered(53), TO_ARRAY, 4, 1, 0, 6, rank, world_size)) for rank in range(world_size)]
    for step in range(6):
        together = [label for share in shares for label in share[4 * step : 4 * step + 4]]
        assert together == alone[4 * world_size * step : 4 * world_size * (step + 1)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 50])
def test_evaluation_sees_every_image_once_at_any_world_size(n, world_size):
    shares = [labels(EvalSamples(numbered(n), TO_ARRAY, 4, PADDING, rank, world_size)) for rank in range(world_size)]
    assert sorted(label for share in shares for label in share if label >= 0) == list(range(n))
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) % 4 == 0


def test_batches_come_in_order_with_workers_too():
    samples = TrainSamples(numbered(64), TO_ARRAY, 8, 1, 0, 12)
    for workers in (1, 2):
        found = [batch["label"].asnumpy().tolist() for batch in batches(samples, 8, workers)]
        assert [label for batch in found for label in batch] == labels(samples)


def test_validation_part_is_cut_out_of_the_training_images():
    whole, cut = load_dataset(DataConfig(), 0), load_dataset(DataConfig(validation=0.25), 0)
    assert (len(cut.train), len(cut.test)) == (9000, 3000)
    pixels = lambda images: {images.image(i).tobytes() for i in range(len(images))}
    assert pixels(cut.train).isdisjoint(pixels(cut.test))
    assert pixels(cut.train) | pixels(cut.test) == pixels(whole.train)
    assert pixels(cut.test).isdisjoint(pixels(whole.test))


def all_of(iterator):
    return [tuple(tensor.asnumpy() for tensor in batch.values()) for batch in iterator]


def equal(one, other):
    return len(one) == len(other) > 0 and all(
        np.array_equal(a, b) and a.dtype == b.dtype for rows in zip(one, other) for a, b in zip(*rows)
    )


@pytest.mark.parametrize("mixing", [(0, 0), (0.8, 1.0)])
def test_any_number_of_workers_and_any_first_step_give_the_same_batches(mixing):
    dataset = load_dataset(DataConfig(augment="randaugment", limit=60), 0)

    def run(first, workers):
        samples = TrainSamples(dataset.train, dataset.train_transform, 8, 3, first, 16)
        return all_of(batches(samples, 8, workers, Mix(*mixing, 10, 3, first) if any(mixing) else None))

    alone = run(0, 1)
    assert len(alone) == 16 and alone[0][0].shape == (8, 1, 28, 28) and alone[0][0].dtype == np.float32
    assert equal(run(0, 2), alone) and equal(run(0, 1000), alone)
    assert equal(run(11, 1), alone[11:]) and equal(run(11, 2), alone[11:])


def mixed(mixup, cutmix, seed=3, rank=0, first=0, batch=0):
    images = np.random.default_rng(1).standard_normal((6, 2, 16, 16)).astype(np.float32)
    labels = np.arange(6, dtype=np.int32)
    out, shares = Mix(mixup, cutmix, 7, seed, first, rank)(batch, {"image": images.copy(), "label": labels}).values()
    assert out.dtype == shares.dtype == np.float32 and shares.shape == (6, 7)
    assert np.allclose(shares.sum(1), 1)
    return images, out, shares


def test_mixup_mixes_images_and_labels_in_the_same_proportion():
    images, out, shares = mixed(0.8, 0)
    share = shares[0, 0]
    assert 0 < share < 1 and np.allclose(out, share * images + (1 - share) * images[::-1], atol=1e-6)
    assert np.allclose(shares[:, :6], share * np.eye(6) + (1 - share) * np.eye(6)[::-1])


def test_cutmix_pastes_a_rectangle_and_labels_go_by_its_area():
    pasted = []
    for step in range(20):
        images, out, shares = mixed(0, 1.0, first=step)
        other = out != images
        assert np.array_equal(out[other], images[::-1][other])
        rows, columns = other[0, 0].any(1), other[0, 0].any(0)
        assert np.array_equal(other[0, 0], rows[:, None] & columns) and (other == other[0, 0]).all()
        assert shares[0, 0] == pytest.approx(1 - other[0, 0].mean())
        pasted.append(other[0, 0].mean())
    assert len(set(pasted)) > 10


def test_what_mixing_draws_depends_on_seed_step_and_rank():
    share = lambda **which: float(mixed(0.8, 0, **which)[2][0, 0])
    assert share(first=4, batch=1) == share(first=0, batch=5) == share(first=5, batch=0)
    assert len({share(), share(first=1), share(seed=4), share(rank=1)}) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unreadable_image_is_an_error_of_one_line_that_names_it(workers, capfd):
    def image(i):
        if i == 17:
            raise UserError("some/where/ünreadable\udcff.jpg: not a readable image: truncated")  # no UTF-8
        return numbered(20).image(i)

    samples = EvalSamples(ImageSet(image, np.arange(20, dtype=np.int32)), TO_ARRAY, 4, PADDING)
    seen = []
    with pytest.raises(UserError, match="^some/where/ünreadable\udcff.jpg: not a readable image: truncated$"):
        for batch in batches(samples, 4, workers):
            seen += batch["label"].asnumpy().tolist()
    assert seen == list(range(16))
    assert capfd.readouterr().err == ""


def test_a_defect_in_a_transform_is_not_taken_for_a_mistake_of_the_user():
    samples = EvalSamples(numbered(4), [lambda sample: 1 / 0], 4, PADDING)
    with pytest.raises(ZeroDivisionError):
        list(batches(samples, 4, 1))
    samples = EvalSamples(numbered(8), [lambda sample: 1 / 0], 4, PADDING)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(batches(samples, 4, 2))
