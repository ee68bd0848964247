"""A Redis that answers errors in the place of what is asked: the rules for a relay in front of a real one."""

from __future__ import annotations

from collections.abc import Callable

#: One error of each class that Redis, Valkey and their clusters answer with.
ERRORS = """
    LOADING Redis is loading the dataset in memory
    OOM command not allowed when used memory > 'maxmemory'.
    MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.
    NOAUTH Authentication required.
    WRONGPASS invalid username-password pair or user is disabled.
    NOPERM User default has no permissions to run the command
    CLUSTERDOWN The cluster is down
    BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.
    MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.
    TRYAGAIN Multiple keys request during rehashing of slot
    MOVED 1234 127.0.0.1:1
    ASK 1234 127.0.0.1:1
    CROSSSLOT Keys in request don't hash to the same slot
    EXECABORT Transaction discarded because of previous errors.
    READONLY You can't write against a read only replica.
    NOREPLICAS Not enough good replicas to write.
    UNBLOCKED client unblocked via CLIENT UNBLOCK
    ERR max number of clients reached
    ERR unknown command
""".strip().splitlines()


class RedisRejections:
    """The state of a relay: each command gets the next of the errors, while there are any."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.num_answered = 0

    def new_filter(self) -> Callable[[bytes], tuple[bytes, bytes]]:
        """The rules for one more client."""
        unread = bytearray()

        def answer(data: bytes) -> tuple[bytes, bytes]:
            if not self.errors:
                unread.clear()
                return data, b""
            unread.extend(data)
            num_commands, length = count_commands(bytes(unread))
            del unread[:length]
            return b"", b"".join(self._next_error() for _ in range(num_commands))

        return answer

    def _next_error(self) -> bytes:
        error = self.errors[self.num_answered % len(self.errors)]
        self.num_answered += 1
        return f"-{error.strip()}\r\n".encode()


def count_commands(data: bytes) -> tuple[int, int]:
    """The number of whole commands at the beginning of the bytes, and their length."""
    count = end = 0
    while (after := _end_of_command(data, end)) is not None:
        count, end = count + 1, after
    return count, end


def _end_of_command(data: bytes, start: int) -> int | None:
    """The place behind an array of bulk strings, as every client sends its commands; None where it is cut off."""
    if (line := data.find(b"\r\n", start)) < 0:
        return None
    place = line + 2
    for _ in range(int(data[start + 1 : line])):
        if (line := data.find(b"\r\n", place)) < 0:
            return None
        place = line + 2 + int(data[place + 1 : line]) + 2
    return place if place <= len(data) else None
