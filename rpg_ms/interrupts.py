"""Ctrl-C and SIGTERM, from the first moment on: every front door imports this module before all others.

Importing it changes how the process answers signals, so no other module does.

Whenever MindSpore compiles or runs a graph it puts a handler of its own in the place of Python's, which makes a SIGTERM
of Ctrl-C. So SIGINT is blocked in all threads, where no handler is called for it, and one thread waits for it.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Optional

APART = 1.0  # seconds; `timeout` and some queues send the same signal twice, at once


def _ctrl_c(number: int, frame: Optional[FrameType]) -> None:
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


def _hand_on() -> None:
    """Have Python's handler called in the main thread for every SIGINT."""
    main = threading.main_thread().ident
    while True:
        signal.sigwait({signal.SIGINT})
        _thread.interrupt_main()
        signal.pthread_kill(main, signal.SIGURG)  # ends what the main thread may be waiting for


def _listen(heard: int) -> None:
    """End the process at the second signal, even while the main thread computes or waits in C++ and hears of none."""
    first = None
    while True:
        number = os.read(heard, 1)[0]
        if number in (signal.SIGINT, signal.SIGTERM):
            first = first or time.monotonic()
            if time.monotonic() - first >= APART:
                os._exit(128 + number)


def _begin() -> None:
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.default_int_handler, signal.SIG_IGN):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of the threads to come, too
    if before is signal.default_int_handler:  # not where it is ignored, as in the background
        signal.signal(signal.SIGINT, _ctrl_c)
        signal.signal(signal.SIGURG, lambda *_: None)
        threading.Thread(target=_hand_on, daemon=True).start()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(heard,), daemon=True).start()


_begin()
