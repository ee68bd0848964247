"""A client's messages as PgBouncer in transaction mode reads them: what it refuses, a relay refuses with these rules.

Start-up parameters that it does not track, named prepared statements, and session settings, which it would leave to
another client.
"""

from __future__ import annotations

import re
import struct

#: PgBouncer's `track_extra_parameters` and what it knows of itself.
STARTUP_PARAMETERS = {
    "user", "database", "application_name", "client_encoding", "datestyle", "timezone", "standard_conforming_strings",
    "replication", "password",
}  # fmt: skip

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
SESSION_SETTING = re.compile(rb"(?:^|[;\0])\s*(?:SET (?!LOCAL|TRANSACTION)|LISTEN |PREPARE )", re.IGNORECASE)


class PoolerRules:
    """One client's messages: called with what it sent, returns what may pass and what it is answered instead."""

    def __init__(self) -> None:
        self._unread = b""
        self._has_started = False

    def __call__(self, data: bytes) -> tuple[bytes, bytes]:
        self._unread += data
        passed = b""
        while (message := self._next_message()) is not None:
            if (fault := self._fault(message)) is not None:
                return passed, error_response(fault)
            passed += message
        return passed, b""

    def _next_message(self) -> bytes | None:
        """The next whole message; the first ones of a client have no type."""
        start = 1 if self._has_started else 0
        if len(self._unread) < start + 4:
            return None
        (length,) = struct.unpack_from("!I", self._unread, start)
        if len(self._unread) < start + length:
            return None
        message, self._unread = self._unread[: start + length], self._unread[start + length :]
        return message

    def _fault(self, message: bytes) -> str | None:
        if not self._has_started:
            if struct.unpack_from("!I", message, 4)[0] in (SSL_REQUEST, GSS_REQUEST):
                return None
            self._has_started = True
            names = message[8:].rstrip(b"\0").split(b"\0")[::2]
            unknown = [name.decode() for name in names if name.decode() not in STARTUP_PARAMETERS]
            return f"unsupported startup parameter: {unknown[0]}" if unknown else None
        if message[:1] == b"P" and message[5:6] != b"\0":
            return "prepared statement does not exist"
        if message[:1] in (b"Q", b"P") and SESSION_SETTING.search(message[5:]):
            return f"a setting of the session: {message[5:80]!r}"
        return None


def error_response(text: str) -> bytes:
    """A fatal error as PgBouncer sends it."""
    fields = b"".join(code + value.encode() + b"\0" for code, value in ((b"S", "FATAL"), (b"C", "08P01"), (b"M", text)))
    return b"E" + struct.pack("!I", len(fields) + 5) + fields + b"\0"
