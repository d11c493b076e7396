"""Reads the numbers in tests/golden, recorded from the released implementation in float64."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

FOLDER = Path(__file__).resolve().parent / "golden"


def rank_cases():
    """The recorded cases of the rank term: `name, w, delta, loss, k, grad`."""
    with np.load(FOLDER / "rank_loss.npz") as file:
        names = sorted({key.split("_")[0] for key in file.files})
        return [
            SimpleNamespace(
                name=name,
                w=file[f"{name}_w"],
                delta=float(file[f"{name}_delta"]),
                loss=float(file[f"{name}_loss"]),
                k=int(file[f"{name}_k"]),
                grad=file[f"{name}_grad"],
            )
            for name in names
        ]
