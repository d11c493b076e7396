"""Graph mode's compiler, called before anything depends on it, and what MindSpore's errors say, in one line."""

from __future__ import annotations

import inspect
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable

import mindcv
import mindspore as ms

import rpg_ms
from rpg_ms.errors import UserError, one_line
from rpg_ms.files import working_folder

if TYPE_CHECKING:
    import numpy as np
    from mindspore import nn

# Where a place in a traceback is not the user's; O1's rewritten networks lie in a temporary folder.
NOT_THE_USERS = tuple(os.path.dirname(package.__file__) + os.sep for package in (rpg_ms, ms, mindcv)) + (
    os.path.join(tempfile.gettempdir(), "rpg_ms-"),
)


def compile_graph(
    cell: nn.Cell, arrays: Iterable[np.ndarray], network: nn.Cell, name: str, what: str, run: bool = False
) -> None:
    """Compile a Cell for inputs of these shapes and types; does nothing in PyNative mode.

    MindSpore keeps what it has compiled by the inputs' shapes and types, so that the first call compiles nothing.

    Args:
        cell: in the mode, training or inference, that it is to run in.
        arrays: NumPy arrays.
        network: the user's network in it.
        name, what: for the message, the network's name in the configuration and what the cell does.
        run: whether to run it as well: what graph mode leaves to Python, such as `asnumpy()`, fails only then.

    Raises:
        UserError: it does not compile, or run; one line, with the compiler's reason and the place in the user's file.
    """
    if ms.get_context("mode") != ms.GRAPH_MODE:
        return
    inputs = [ms.Tensor(array) for array in arrays]
    # The compiler writes into the current folder what it tried, even where it finds a way in the end.
    with tempfile.TemporaryDirectory(prefix="rpg_ms-") as folder, working_folder(folder), _logged(folder) as log:
        try:
            if run:
                cell(*inputs).asnumpy()
            else:
                cell.compile(*inputs)
        except Exception as error:  # of any kind, about anybody's network
            place = _place(f"{error}\n{log()}", network)
            raise UserError(
                f"model.name: {name}: graph mode does not compile its {what}: {reason(error)}{place}; "
                "mode=pynative runs networks without compiling them"
            ) from None
        written = log()
    sys.stderr.write(written)


def reason(error: BaseException) -> str:
    """What an error of MindSpore's says, in one line: without the call stacks below and the headings above."""
    sections = [text.strip() for text in re.split(r"(?:^|\n)-{10,}\n", str(error))]
    text = next((text for text in sections if text and not text.startswith("- ")), "")
    text = re.split(r"\n(?:FunctionGraph ID|NodeInfo|node|More details|For more details)\b", text)[0]
    return one_line(text).rstrip(".") or type(error).__name__


def _place(text: str, network: nn.Cell) -> str:
    """ " (FILE, line N)": the innermost line of the user's that a compiler's message names, else his `construct`."""
    own = [
        (numbered, file, line)
        for numbered, file, line in re.findall(r"(?m)^(# \d+ |NodeInfo: )?In file (.+?):(\d+)(?:~\d+)?, \d+~\d+", text)
        if not file.startswith(NOT_THE_USERS)
    ]
    # A numbered list ends with the innermost line, the others begin with it.
    innermost = [place for place in own if not place[0].startswith("#")][:1] or own[-1:]
    if innermost:
        _, file, line = innermost[0]
    else:
        construct = inspect.unwrap(type(network).construct)
        file, line = construct.__code__.co_filename, construct.__code__.co_firstlineno
    return "" if file.startswith(NOT_THE_USERS) else f" ({file}, line {line})"


@contextmanager
def _logged(folder: str) -> Iterator[Callable[[], str]]:
    """Within the block what is written to stderr goes to a file; yields what reads it. The compiler, in C++, logs there
    what it raises as well, and the only place that it names is at times there.
    """
    with open(os.path.join(folder, "stderr"), "w+", encoding="utf-8", errors="replace") as file:

        def log() -> str:
            sys.stderr.flush()
            file.seek(0)
            return file.read()

        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
