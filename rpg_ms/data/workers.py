"""Processes that make batches.

Ours and not MindSpore's, whose iterator never returns once a worker has died, and which need shared memory, of which a
container may have little; nor `concurrent.futures`', which stay behind when this process is killed, and whose one
thread unpickles the batches of all. Here batches come through sockets, and a socket tells when the other end is gone.
"""

from __future__ import annotations

import atexit
import multiprocessing
import pickle
import signal
import socket
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rpg_ms.errors import CutShort, UserError

OURS_TO_ANSWER = (signal.SIGINT, signal.SIGTERM)  # which may be sent to the workers too
BUFFER = 4 << 20  # bytes; with the usual 0.2 MB, large batches take three times as long


class Workers:
    """Worker k of n makes the batches k, k + n, k + 2n, ... of a source, each ahead of being asked for it.

    Args:
        source: batches in random access, with a length.
        count: how many processes.

    Raises:
        CutShort: a process cannot be started.
    """

    def __init__(self, source: Sequence[Mapping[str, np.ndarray]], count: int) -> None:
        self._team = []  # of each worker its process, and the stream that comes out of it
        atexit.register(self.end)  # before multiprocessing waits for them
        sockets = []
        before = signal.pthread_sigmask(signal.SIG_BLOCK, OURS_TO_ANSWER)
        try:
            for first in range(count):
                ours, theirs = socket.socketpair()
                sockets.append(ours)
                arguments = source, range(first, len(source), count), theirs, sockets
                process = multiprocessing.get_context("fork").Process(target=_work, args=arguments, daemon=True)
                with theirs:
                    process.start()
                self._team.append((process, ours.makefile("rb")))
        except OSError as error:
            raise CutShort(f"data.workers: worker {first + 1} of {count} cannot be started: {error.strerror}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
        """A batch; they must be asked for in order.

        Raises:
            CutShort: its worker is dead.
            UserError: as the source.
            RuntimeError: the source raised something else, with its traceback.
        """
        process, stream = self._team[batch % len(self._team)]
        try:
            made = pickle.load(stream)
            if isinstance(made, Exception):
                raise made
            arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in made.items()}
            for array in arrays.values():
                if stream.readinto(array.reshape(-1).view(np.uint8)) < array.nbytes:
                    raise EOFError
            return arrays
        except (EOFError, OSError, pickle.UnpicklingError):
            process.join(1)
            status = process.exitcode or 0
            by = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            raise CutShort(
                f"data.workers: worker {process.pid}, of {len(self._team)}, is dead ({by}); where nobody ended it, "
                "memory ran out: take fewer workers, or give a container more, docker run --memory"
            ) from None

    def end(self) -> None:
        """End the processes."""
        atexit.unregister(self.end)
        for process, _ in self._team:
            process.kill()
            process.join()


def _work(source: Any, mine: range, theirs: socket.socket, not_theirs: Sequence[socket.socket]) -> None:
    for number in OURS_TO_ANSWER:
        signal.signal(number, signal.SIG_IGN)
    for end in not_theirs:  # so that the last one to hold them is the parent, and its death is noticed
        end.close()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    try:
        with theirs, theirs.makefile("wb") as stream:
            for batch in mine:
                try:
                    arrays = {name: np.ascontiguousarray(array) for name, array in source[batch].items()}
                    made = {name: (array.shape, array.dtype) for name, array in arrays.items()}
                except UserError as error:
                    made, arrays = error, {}
                except Exception:  # a defect, which the parent shows
                    made, arrays = RuntimeError(traceback.format_exc()), {}
                pickle.dump(made, stream)
                for array in arrays.values():
                    stream.write(array)  # not pickled, which takes twice the time at the other end
                stream.flush()
    except ConnectionError:
        pass  # the parent is gone
