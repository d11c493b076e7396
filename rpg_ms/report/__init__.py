"""What sparse networks look like: a page on one training run, or on several beside each other."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Union

from rpg_ms.errors import UserError
from rpg_ms.report.page import Picture, page_of_run, page_of_runs, render
from rpg_ms.report.runs import Run, load_run


def write_report(runs: Sequence[Run], folder: Union[str, os.PathLike]) -> Path:
    """Write `folder/report.html`, one file that needs nothing else, and its figures as PNG files; returns its path.

    One run gets a page of its own, several a comparison, in which runs of one label and sparsity count as seeds.

    Raises:
        UserError: the folder cannot be written.
    """
    title, parts = page_of_run(runs[0]) if len(runs) == 1 else page_of_runs(runs)
    png = {}
    for picture in parts:
        if isinstance(picture, Picture):
            stream = io.BytesIO()
            picture.figure.savefig(stream, format="png", dpi=150)
            png[picture.name] = stream.getvalue()
    folder = Path(folder)
    page = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in png.items():
            (folder / f"{name}.png").write_bytes(content)
        page.write_text(render(title, parts, png), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    return page
