"""Ctrl-C and SIGTERM, from the first moment on: every front door imports this module before all others.

Importing it changes how the process answers signals, so no other module does.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn, Optional

APART = 1.0  # seconds; `timeout` and some queues send the same signal twice, at once


def _ctrl_c(number: int, frame: Optional[FrameType]) -> NoReturn:
    """End at once while modules are imported or MindSpore compiles: out of those an exception would come as another,
    with their tracebacks, or as a core dump.
    """
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith("<frozen importlib") or (name == "compile" and "mindspore" in file):
            with suppress(Exception):  # a flush that was under way, or a stdout that is gone
                sys.stdout.flush()
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


def _listen(heard: int) -> NoReturn:
    """End the process at the second signal, even while the main thread computes or waits in C++ and hears of none.

    Where it compiles, MindSpore leaves a handler of its own in the place of Python's, which makes a SIGTERM of Ctrl-C:
    again and again Python's is put back.
    """
    sigaction, pythons = ctypes.CDLL(None).sigaction, ctypes.create_string_buffer(1024)  # larger than the structure
    sigaction(signal.SIGINT, None, pythons)
    first = None
    while True:
        sigaction(signal.SIGINT, pythons, None)
        if not select.select([heard], [], [], 0.1)[0]:
            continue
        number = os.read(heard, 1)[0]
        if number in (signal.SIGINT, signal.SIGTERM):
            first = first or time.monotonic()
            if time.monotonic() - first >= APART:
                os._exit(128 + number)


def _begin() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as in the background
        signal.signal(signal.SIGINT, _ctrl_c)
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(heard,), daemon=True).start()


_begin()
