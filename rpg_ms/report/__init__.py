"""What sparse networks look like: a page on one training run, or on several beside each other."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Union

from rpg_ms.errors import UserError
from rpg_ms.report.page import Picture, page_of_run, page_of_runs, render
from rpg_ms.report.runs import Run, load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "load_run", "write_report"]

DOTS_PER_INCH = 150


def write_report(runs: Iterable[Run], folder: Union[str, os.PathLike]) -> Path:
    """Write `folder/report.html`, one file that needs nothing else, and its figures as PNG files beside it.

    Args:
        runs: Runs (`load_run`), at least one; one gets a page of its own, several a comparison, in which
            runs of one label and sparsity count as seeds.
        folder: where to, made if it is missing.

    Returns:
        Path of the page.

    Raises:
        UserError: the folder cannot be written.
    """
    runs, folder = list(runs), Path(folder)
    title, parts = page_of_run(runs[0]) if len(runs) == 1 else page_of_runs(runs)
    png = {part.name: _png(part.figure) for part in parts if isinstance(part, Picture)}
    page = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in png.items():
            (folder / f"{name}.png").write_bytes(content)
        page.write_text(render(title, parts, png), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    return page


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()
