"""Knows when the server is told to stop, so that answers which are held open can end.

A server waits for its connections before it tells the application, so long answers would hold it up for ever.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Shutdown:
    """A flag that turns once."""

    def __init__(self) -> None:
        self._begun = threading.Event()

    @property
    def begun(self) -> bool:
        """True from the moment that the server was told to stop."""
        return self._begun.is_set()

    def begin(self) -> None:
        """Turn the flag."""
        self._begun.set()

    @contextmanager
    def watching_signals(self) -> Iterator[None]:
        """While the block runs, SIGTERM and SIGINT turn the flag before the server's own handler acts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number, handler in earlier.items():
            signal.signal(number, self._before(handler))
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _before(self, handler: object) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            self.begin()
            if callable(handler):
                handler(number, frame)

        return handle
