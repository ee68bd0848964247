"""Opening a prompt file, plain, .gz or .zst; damage becomes a message."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from producer.errors import UsageError

COMPRESSED = (".gz", ".zst")


def base_suffix(path: Path) -> str:
    """The suffix that names the format: `.jsonl` for `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """The file's decompressed bytes. Raises `UsageError` for a file that cannot be read to its end."""
    try:
        with _open(path) as file:
            yield file
    except EOFError as error:
        raise UsageError(f"cannot read {path}: the compressed file ends too early; copy it again") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"cannot read {path}: it is damaged, or not what its name says ({error})") from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UsageError(f"cannot read {path}: {reason}") from error


def _open(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        import pyarrow

        # A file of Python's: pyarrow itself opens no path that is not UTF-8.
        return io.BufferedReader(pyarrow.input_stream(path.open("rb"), compression="zstd"))
    return path.open("rb")
