"""A relay between a client and a server that goes mute: it acknowledges what it reads and passes nothing on.

Neither side's kernel notices, so keepalives find nothing. What a mute relay reads is lost; its connections stay mute.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

BUFFER_BYTES = 65536


class Pair:
    """One client's connection and its server's."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.is_mute = Event()

    def close(self) -> None:
        for each in (self.client, self.server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class TcpRelay:
    """Listens on a local port and forwards to a Unix socket.

    `filter_client` may change or refuse what a client sends: it returns the bytes to pass on, and those to answer.
    """

    def __init__(
        self, target: Path, new_filter: Callable[[], Callable[[bytes], tuple[bytes, bytes]]] | None = None
    ) -> None:
        self._target = str(target)
        self._new_filter = new_filter
        self._lock = Lock()
        self._pairs: list[Pair] = []
        self._is_mute_for_new = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.cut()

    def mute(self, *, new_ones_too: bool = False) -> int:
        """Makes the connections mute for good, and those to come until `speak`; returns the number of the former."""
        with self._lock:
            self._is_mute_for_new = new_ones_too
            mute = [pair for pair in self._pairs if not pair.is_mute.is_set()]
            for pair in mute:
                pair.is_mute.set()
            return len(mute)

    def speak(self) -> None:
        """New connections work again."""
        with self._lock:
            self._is_mute_for_new = False

    def cut(self) -> None:
        """Closes every connection."""
        with self._lock:
            for pair in self._pairs:
                pair.close()
            self._pairs.clear()

    def _accept(self) -> None:
        with suppress(OSError):  # closed at the end
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(self._target)
                except OSError:
                    client.close()
                    server.close()
                    continue
                pair = Pair(client, server)
                with self._lock:
                    self._pairs.append(pair)
                    if self._is_mute_for_new:
                        pair.is_mute.set()
                Thread(target=self._serve, args=(pair,), daemon=True).start()

    def _serve(self, pair: Pair) -> None:
        answer = None if self._new_filter is None else self._new_filter()
        with suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            for each in (pair.client, pair.server):
                selector.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if not self._pass_on(pair, key.fileobj is pair.client, answer):
                        return
        pair.close()

    def _pass_on(self, pair: Pair, is_from_client: bool, answer: Callable[[bytes], tuple[bytes, bytes]] | None) -> bool:
        """Passes on what one side sent; false where the connection is over."""
        source, sink = (pair.client, pair.server) if is_from_client else (pair.server, pair.client)
        data = source.recv(BUFFER_BYTES)
        if pair.is_mute.is_set():
            return bool(data)  # the other side stays open: it hears nothing of a client that has gone
        if is_from_client and answer is not None and data:
            data, reply = answer(data)
            if reply:
                pair.client.sendall(reply)
                pair.close()
                return False
        if not data:
            pair.close()
            return False
        sink.sendall(data)
        return True
