"""Little datasets in the formats of the real ones, for tests."""

import struct

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


def tiff(path, pixels, bits=None, order="<", photometric=1, sample_format=1, planar=1):
    """An uncompressed TIFF file of `[h, w, c]` pixels: `order` of the bytes, tags as in the standard; returns path.

    Pillow writes few of the layouts that it reads. With 12 `bits`, which lie packed, pixels are an even number.
    """
    height, width, channels = pixels.shape
    bits = bits or 8 * pixels.itemsize
    data = (pixels.transpose(2, 0, 1) if planar == 2 else pixels).astype(pixels.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        data = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in pixels.reshape(-1, 2).tolist())
    strips = channels if planar == 2 else 1
    tags = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [1],
        262: [photometric],
        273: None,
        277: [channels],
        278: [height],
        279: [len(data) // strips] * strips,
        284: [planar],
        339: [sample_format] * channels,
    }
    values_at = 8 + 2 + 12 * len(tags) + 4
    data_at = values_at + 4 * sum(strips if values is None else len(values) for values in tags.values())
    tags[273] = [data_at + i * len(data) // strips for i in range(strips)]
    entries, values_bytes = b"", b""
    for tag, values in tags.items():  # all of them 32-bit integers
        packed = struct.pack(f"{order}{len(values)}I", *values)
        place = packed if len(values) == 1 else struct.pack(f"{order}I", values_at + len(values_bytes))
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + place
        values_bytes += packed if len(values) > 1 else b""
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    path.write_bytes((header + directory + values_bytes).ljust(data_at, b"\0") + data)
    return path
