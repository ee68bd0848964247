"""A relay between a client and a Unix socket that can go mute: connections stay open, and not a byte passes."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self


class Relay:
    """Listens on one Unix socket and connects each client to another one."""

    def __init__(self, listening: Path, server: Path) -> None:
        self.listening = listening
        self._server = server
        self._is_passing = Event()
        self._is_passing.set()
        self._lock = Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lost: set[socket.socket] = set()  # mute for good
        self._socket = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        self._socket.bind(str(self.listening))
        self.listening.chmod(0o777)
        self._socket.listen(128)
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._is_passing.set()
        for pair in self._pairs:
            _close(*pair)
        self.listening.unlink(missing_ok=True)

    def mute(self) -> None:
        """From now on nothing passes, and nobody hears of it; new connections are taken and stay without an answer."""
        self._is_passing.clear()

    def go_on(self, are_old_lost: bool) -> None:
        """Everything passes again; with `are_old_lost` only in new connections, the old ones stay mute for good."""
        with self._lock:
            if are_old_lost:
                self._lost.update(client for client, _ in self._pairs)
        self._is_passing.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._server))
            except OSError:
                _close(client, server)
                continue
            with self._lock:
                self._pairs = [pair for pair in self._pairs if pair[0].fileno() >= 0]
                self._pairs.append((client, server))
            for source, target in ((client, server), (server, client)):
                Thread(target=self._pass_on, args=(client, source, target), daemon=True).start()

    def _pass_on(self, client: socket.socket, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._is_passing.wait()
                if client in self._lost:
                    continue
                target.sendall(data)
        if client not in self._lost or source is client:
            self._lost.discard(client)
            _close(source, target)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
