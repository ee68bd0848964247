"""A proxy that adds TLS to a server whose build has none."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

import trustme

#: A PostgreSQL client's request for TLS: its length and a code (the protocol's "SSLRequest").
SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


class TlsProxy:
    """Terminates TLS on a local port and forwards to a Unix socket; clients must trust `authority`."""

    def __init__(self, target: Path, folder: Path, *, is_postgresql: bool = False) -> None:
        self._target = str(target)
        self._is_postgresql = is_postgresql
        authority = trustme.CA()
        self.authority = folder / f"authority-of-{target.name}.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed at the end
            while True:
                plain, _ = self._listener.accept()
                Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        """Serves one connection; hangs up on a client that does not speak TLS or does not trust the authority."""
        with suppress(OSError), plain:
            if self._is_postgresql:
                if plain.recv(8, socket.MSG_WAITALL) != SSL_REQUEST:
                    return
                plain.sendall(b"S")
            with (
                self._context.wrap_socket(plain, server_side=True) as client,
                socket.socket(socket.AF_UNIX) as server,
            ):
                server.connect(self._target)
                back = Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
