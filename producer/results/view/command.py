"""`producer view`: opens the database, prints the address, and serves until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
import sys
from dataclasses import dataclass

from sqlalchemy import Engine

from models.database.faults import first_line
from models.settings import Settings
from producer.console import print_data, say
from producer.errors import UsageError
from producer.home import home_options
from producer.results.database import check_reading_role, reading
from producer.results.queries import find_run

DEFAULT_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """The place to listen at; port 0 is any free one."""

    host: str = DEFAULT_HOST
    port: int = 0


def view(settings: Settings, run: str | None, address: Address, *, as_superuser: bool) -> None:
    """Serves the pages of a database. Raises `UsageError`."""
    with reading(settings) as database:
        check_reading_role(database, as_superuser=as_superuser)
        path = "/runs" if run is None else f"/runs/{find_run(database, run)}"
        with listening_socket(address) as listener:
            flags = home_options(settings) if settings.database is None else ""
            serve(database, listener, address.host, path, flags)


def listening_socket(address: Address) -> socket.socket:
    """Raises `UsageError` for an address that cannot be listened at."""
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address.host, address.port), family=family)
    except (OSError, UnicodeError) as error:  # the latter for a name that DNS cannot have
        raise UsageError(
            f"cannot listen at {address.host} port {address.port}: {first_line(error)}; give another --host or --port"
        ) from error


def serve(database: Engine, listener: socket.socket, host: str, path: str, options: str) -> None:
    """Serves until it is interrupted; the address that it prints has the token that opens it."""
    import uvicorn

    from producer.results.view.app import make_app

    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24)
    app = make_app(database, token, host, port, options)
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none", lifespan="off", server_header=False)
    try:
        print_data(f"http://{shown}:{port}{path}?token={token}")
        sys.stdout.flush()  # a pipe gets the address while the server runs
        say("the address opens the pages for whoever has it; Ctrl-C ends them")
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        return
