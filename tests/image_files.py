"""Little datasets in the formats of the real ones, for tests."""
import numpy as np
from PIL import Image


def noise(seed, height=20, width=24):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def class_folders(root, train=6, val=2, classes=("n02", "n01", "n10")):
    """JPEGs of noise of different sizes in root/train and root/val; returns root."""
    for p, (part, count) in enumerate((("train", train), ("val", val))):
        for c, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(noise((p, c, i), 20 + 3 * i, 24 + c))
                image.save(folder / f"{name}_{i}.JPEG", quality=95)
    return root


def cifar10(root, per_file=20):
    """The six files of CIFAR-10's binary layout in root, labels cycling; returns the training records."""
    rng = np.random.default_rng(0)
    train = []
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        records = rng.integers(0, 256, (per_file, 3073), np.uint8)
        records[:, 0] = np.arange(per_file) % 10
        records.tofile(root / f"{name}.bin")
        train.append(records)
    return np.concatenate(train[:5])


def cifar100(root, train=20, test=20):
    """The two files of CIFAR-100's binary layout in root, fine labels counting up; returns root."""
    for name, count in (("train", train), ("test", test)):
        records = np.random.default_rng(count).integers(0, 256, (count, 3074), np.uint8)
        records[:, 0], records[:, 1] = 0, np.arange(count) % 100
        records.tofile(root / f"{name}.bin")
    return root
