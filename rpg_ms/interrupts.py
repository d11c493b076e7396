"""Ctrl-C and SIGTERM, from the first moment on: every front door imports this module before all others.

Importing it changes how the process answers signals, so no other module does.
"""
from __future__ import annotations

import os
import signal
import threading
import time

APART = 1.0  # seconds; `timeout` and some queues send the same signal twice, at once


def _ctrl_c(number, frame):
    """While modules are imported end at once: an exception would come out of them as another, or as a core dump."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


def _end_at_second_signal(heard):
    """End the process at the second signal, even while the main thread computes or waits in C++ and hears of none."""
    first = None
    while True:
        number = os.read(heard, 1)[0]
        if number in (signal.SIGINT, signal.SIGTERM):
            now = time.monotonic()
            first = now if first is None else first
            if now - first >= APART:
                os._exit(128 + number)


def _listen():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as in the background
        signal.signal(signal.SIGINT, _ctrl_c)
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second_signal, args=(heard,), daemon=True).start()


_listen()
