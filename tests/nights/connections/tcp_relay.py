"""A relay between a client and a server that goes mute: it acknowledges what it reads and passes nothing on.

It may be mute in one direction alone. Neither side's kernel notices, so keepalives find nothing. What a mute relay
reads is lost; its connections stay mute.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import Self

BUFFER_BYTES = 65536

BOTH, TO_SERVER, TO_CLIENT = frozenset({True, False}), frozenset({True}), frozenset({False})


class Pair:
    """One client's connection and its server's."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.mute_sides: frozenset[bool] = frozenset()  # True: what the client sends, False: what the server does

    def close(self) -> None:
        for each in (self.client, self.server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class TcpRelay:
    """Listens on a local port and forwards to a Unix socket, or to another local port.

    `new_filter` makes what may change or refuse the bytes of a client: it returns those to pass on, and those to
    answer, which end the connection unless `goes_on`.
    """

    def __init__(
        self,
        target: Path | int,
        new_filter: Callable[[], Callable[[bytes], tuple[bytes, bytes]]] | None = None,
        *,
        goes_on: bool = False,
    ) -> None:
        self._target = target
        self._new_filter = new_filter
        self._goes_on = goes_on
        self._lock = Lock()
        self._pairs: list[Pair] = []
        self._new_mute_sides: frozenset[bool] = frozenset()
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

    def mute(self, sides: frozenset[bool] = BOTH, *, new_ones_too: bool = False) -> int:
        """Makes the connections mute for good, and those to come until `speak`; returns the number of the former."""
        with self._lock:
            self._new_mute_sides = sides if new_ones_too else frozenset()
            mute = [pair for pair in self._pairs if not pair.mute_sides]
            for pair in mute:
                pair.mute_sides = sides
            return len(mute)

    def speak(self) -> None:
        """New connections work again."""
        with self._lock:
            self._new_mute_sides = frozenset()

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
                try:
                    server = self._connected()
                except OSError:
                    client.close()
                    continue
                pair = Pair(client, server)
                with self._lock:
                    self._pairs.append(pair)
                    pair.mute_sides = self._new_mute_sides
                Thread(target=self._serve, args=(pair,), daemon=True).start()

    def _connected(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target))
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._target))
        except OSError:
            server.close()
            raise
        return server

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
        if is_from_client in pair.mute_sides:
            return bool(data)  # the other side stays open: it hears nothing of a client that has gone
        if is_from_client and answer is not None and data:
            data, reply = answer(data)
            if reply:
                pair.client.sendall(reply)
                if self._goes_on:
                    return True
                pair.close()
                return False
        if not data:
            pair.close()
            return False
        sink.sendall(data)
        return True
