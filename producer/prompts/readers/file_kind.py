"""The kind of a file by its first bytes: one that its format cannot be is refused by what it is, before it is parsed.

Knows no format's own damage, which its reader finds.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from producer.errors import UsageError
from producer.prompts.files import COMPRESSED, open_file

HEAD_BYTES = 512

#: Kinds of files that are not read, by their first bytes, and the advice for each.
FOREIGN = {
    b"\x1f\x8b": "is compressed with gzip; let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; let its name end in .zst",
    b"BZh": "is compressed with bzip2; unpack it, or compress it with gzip or zstd",
    b"\xfd7zXZ\0": "is compressed with xz; unpack it, or compress it with gzip or zstd",
    b"PK\x03\x04": "is a zip archive, as workbooks of Excel are; save the sheet as CSV, or unpack the archive",
    b"\xd0\xcf\x11\xe0": "is a workbook of an old Excel; save the sheet as CSV",
    b"ARROW1": "is an Arrow file; write it as Parquet",
    b"SQLite format 3\0": "is an SQLite database; export the table as CSV or JSON lines",
    b"\x89HDF": "is an HDF5 file; write it as Parquet",
    b"Obj\x01": "is an Avro file; write it as Parquet",
    b"ORC": "is an ORC file; write it as Parquet",
    b"%PDF-": "is a PDF; give its text",
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull`, or download it again",
}
PARQUET = b"PAR1"
WEB_PAGES = (b"<!doctype html", b"<html")

UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_kind(path: Path, format: str, *, is_utf8: bool) -> None:
    """Raises `UsageError` for a file that is of another kind than its format, or of another UTF than is named."""
    with open_file(path) as file:
        head = file.read(HEAD_BYTES)
    problem = _problem(head, format, is_utf8=is_utf8)
    if problem and "compressed" in problem and path.suffix.lower() in COMPRESSED:
        problem = "is compressed twice; unpack it once"
    if problem:
        raise UsageError(f"{path} {problem}")


def _problem(head: bytes, format: str, *, is_utf8: bool) -> str | None:
    for mark, problem in FOREIGN.items():
        if head.startswith(mark) and not (mark.isalpha() and _is_text(head)):
            return problem
    if format == "parquet":
        return None
    if head.startswith(PARQUET) and not _is_text(head):
        return "is a Parquet file; give --input-format parquet"
    if format != "text" and head.lstrip().lower().startswith(WEB_PAGES):
        return "is a web page, not the file itself; download it again"
    if not is_utf8:
        return "is UTF-8 by its first bytes; leave --encoding out" if head.startswith(codecs.BOM_UTF8) else None
    if encoding := _utf(head):
        return f"is {encoding.upper()}; save it as UTF-8, or give --encoding {encoding}"
    return None


def _utf(head: bytes) -> str | None:
    """The encoding of a text with more than a byte to a character, by its mark or by its zeros."""
    if head.startswith(UTF_32):
        return "utf-32"
    if head.startswith(UTF_16):
        return "utf-16"
    for encoding, place in (("utf-16-le", 1), ("utf-16-be", 0)):
        zeros, others = head[place::2], head[1 - place :: 2]
        if zeros and 0 not in others and (not any(zeros) or _has_wide_line_end(zeros, others)):
            return encoding
    return None


def _has_wide_line_end(zeros: bytes, others: bytes) -> bool:
    """Whether line ends have two bytes, in a text of characters that fill theirs, such as Chinese ones."""
    pairs = list(zip(others, zeros, strict=False))
    ends = [zero for other, zero in pairs if other in b"\r\n"]
    return len(others) == len(zeros) and bool(ends) and not any(ends) and not any(each in b"\r\n" for each in zeros)


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in head)
