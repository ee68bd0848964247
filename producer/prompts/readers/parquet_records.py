"""Parquet files as records: a value of any type becomes what JSON has, or its row is named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from producer.errors import LineProblem, UsageError
from producer.prompts.files import open_file
from producer.prompts.readers.cells import ABSENT, BOOLEAN_FIELDS, cell_value
from producer.prompts.readers.parquet_pages import DamagedPage, column_names, pages
from producer.prompts.readers.record import (
    MAX_LINE_BYTES,
    PARAMETER_FIELDS,
    FileFacts,
    Record,
    check_number_of_columns,
    whole_number,
)
from producer.prompts.readers.text_lines import TOO_LONG

ROWS_PER_BATCH = 1_000
ROWS_OF_PREFIXES = 16  # of texts that are stored as the beginning of the one before and a rest, and unfold to much

#: A page of rows as long as a line may be, some dozens of them.
MAX_PAGE_BYTES = 2**29
MAX_NESTED_VALUES = 2**26

#: Numbers of a type's time units in a second.
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read_parquet(path: Path, facts: FileFacts) -> Iterator[Record]:
    """The rows; a null is a field that is not given, and so is NaN, which some tools write for it."""
    import pyarrow
    from pyarrow import parquet

    with open_file(path) as opened:
        try:
            metadata = parquet.read_metadata(opened)
            names = metadata.schema.to_arrow_schema().names
            check_number_of_columns(str(path), len(names), facts)
            facts.check_columns(names)
            if doubles := sorted(name for name, times in Counter(names).items() if times > 1):
                raise UsageError(f"{path}: two columns are called {doubles[0]!r}; rename one of them")
            wanted = [name for name in names if facts.wanted is None or name in facts.wanted]
            _check_pages(path, opened, metadata, frozenset(wanted))
            texts, has_prefixes = _texts(metadata)
            file = parquet.ParquetFile(opened, metadata=metadata, read_dictionary=texts)
            number, size = 0, ROWS_OF_PREFIXES if has_prefixes else ROWS_PER_BATCH
            for batch in file.iter_batches(batch_size=size, columns=None if wanted == names else wanted):
                for part in _small_parts(batch):
                    yield from _rows(part, number)
                    number += part.num_rows
        except DamagedPage as error:
            raise UsageError(f"cannot read {path}: it is not a readable Parquet file (a page is damaged)") from error
        except MemoryError as error:
            raise UsageError(f"cannot read {path}: there is not enough memory for a batch of its rows") from error
        except (pyarrow.ArrowException, OverflowError, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {path}: it is not a readable Parquet file ({_one_line(error)})") from error


def _texts(metadata: Any) -> tuple[list[str], bool]:
    """The columns that are read as dictionaries, and whether some column's texts have the beginnings of others.

    Repeated texts stay one text each until the size of the rows that repeat them is known. Arrow reads no deltas so.
    """
    deltas: dict[str, bool] = {}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if any(encoding.startswith("DELTA_") for encoding in chunk.encodings):
                has_prefixes = "DELTA_BYTE_ARRAY" in chunk.encodings
                deltas[chunk.path_in_schema] = deltas.get(chunk.path_in_schema, False) or has_prefixes
    columns = map(metadata.schema.column, range(metadata.num_columns))
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY" and column.path not in deltas]
    return texts, any(deltas.values())


def _check_pages(path: Path, file: Any, metadata: Any, columns: frozenset[str]) -> None:
    """Raises `UsageError` for a column that would unfold to more than fits into memory."""
    num_values: Counter[str] = Counter()
    leaves = map(metadata.schema.column, range(metadata.num_columns))
    lists = {column.path for column in leaves if column.max_repetition_level > 0}
    for page in pages(file, metadata, columns):
        name = next(name for name in column_names(page.column) if name in columns)
        if page.num_bytes > MAX_PAGE_BYTES:
            raise UsageError(
                f"{path}: a page of column {name!r} unfolds to {page.num_bytes / 2**20:,.0f} MiB, and at most "
                f"{MAX_PAGE_BYTES // 2**20:,} MiB are read; write the file with smaller pages, or leave the column out "
                "with --metadata-columns"
            )
        if page.column in lists:
            num_values[page.column] += page.num_values
            if num_values[page.column] > MAX_NESTED_VALUES:
                raise UsageError(
                    f"{path}: column {name!r} has lists of more than {MAX_NESTED_VALUES:,} values in all, which may "
                    "be those of one row; split the file, or leave the column out with --metadata-columns"
                )


def _small_parts(batch: Any) -> Iterator[Any]:
    """The batch in parts that unfold to little, down to single rows."""
    if batch.num_rows <= 1 or sum(map(_unfolded_bytes, batch.columns)) <= MAX_LINE_BYTES:
        yield batch
    else:
        half = batch.num_rows // 2
        yield from _small_parts(batch.slice(0, half))
        yield from _small_parts(batch.slice(half))


def _rows(batch: Any, num_before: int) -> Iterator[Record]:
    if batch.num_rows == 1 and sum(map(_unfolded_bytes, batch.columns)) > MAX_LINE_BYTES:
        yield Record(num_before + 1, "", {}, LineProblem("", TOO_LONG))
        return
    columns = {name: column_values(name, batch.column(name)) for name in batch.schema.names}
    for index in range(batch.num_rows):
        yield _row(num_before + index + 1, {name: values[index] for name, values in columns.items()})


def _unfolded_bytes(array: Any) -> int:
    """The bytes of an array's texts, each as often as it occurs, and eight for each other value."""
    import pyarrow
    from pyarrow import compute

    types, kind = pyarrow.types, array.type
    if isinstance(array, pyarrow.ExtensionArray):
        return _unfolded_bytes(array.storage)
    if types.is_dictionary(kind):
        return _sum(compute.take(_lengths(array.dictionary), array.indices))
    if types.is_struct(kind):
        return sum(map(_unfolded_bytes, array.flatten()))
    if types.is_map(kind):
        begin, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return sum(_unfolded_bytes(child.slice(begin, end - begin)) for child in (array.keys, array.items))
    if types.is_nested(kind):
        return _unfolded_bytes(array.flatten()) if hasattr(array, "flatten") else int(array.nbytes)
    return _sum(_lengths(array)) if _has_length(kind) else 8 * len(array)


def _has_length(kind: Any) -> bool:
    from pyarrow import types

    return any((types.is_string(kind), types.is_large_string(kind), types.is_binary(kind), types.is_large_binary(kind)))


def _lengths(texts: Any) -> Any:
    import pyarrow
    from pyarrow import compute

    return compute.binary_length(texts) if _has_length(texts.type) else pyarrow.array([8] * len(texts))


def _sum(lengths: Any) -> int:
    from pyarrow import compute

    return compute.sum(compute.cast(lengths, "int64")).as_py() or 0


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _row(number: int, values: dict[str, Any]) -> Record:
    problem = next((value for value in values.values() if isinstance(value, LineProblem)), None)
    read = {name: _read(name, value) for name, value in values.items() if not isinstance(value, LineProblem)}
    fields = {name: value for name, value in read.items() if value is not None and value is not ABSENT}
    raw = json.dumps(fields, ensure_ascii=False)
    return Record(number, raw, {} if problem else fields, problem)


def _read(name: str, value: Any) -> Any:
    """A value as its field has it: tools that read CSV leave parameters as text, and booleans as numbers."""
    is_spelled = name in PARAMETER_FIELDS and (isinstance(value, str) or name in BOOLEAN_FIELDS)
    return cell_value(name, str(value)) if is_spelled and value is not None else whole_number(name, value)


def column_values(field: str, array: Any) -> list[Any]:
    """A column's values as JSON has them; a `LineProblem` for one that it has not."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        if types.is_integer(array.type) or types.is_boolean(array.type) or types.is_string(array.type):
            values: list[Any] = array.to_pylist()
            return values
    except UnicodeDecodeError:
        pass  # found again below, in its row
    return [_value_or_problem(field, scalar) for scalar in array]


def _value_or_problem(field: str, scalar: Any) -> Any:
    try:
        return json_value(field, scalar)
    except LineProblem as problem:
        return problem
    except RecursionError:
        return LineProblem(field, "is nested too deeply")


def json_value(field: str, scalar: Any) -> Any:
    """A value as JSON has it: its ISO or decimal text where JSON has no such type. Raises `LineProblem`."""
    import pyarrow

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pyarrow.ExtensionScalar):
        if (value := _as_python(scalar)) is not None and isinstance(value, UUID):
            return str(value)
        return json_value(field, scalar.value)
    if isinstance(scalar, pyarrow.DictionaryScalar):
        return json_value(field, scalar.value)
    for is_of, simple in _SIMPLE:
        if getattr(pyarrow.types, is_of)(scalar.type):
            return simple(scalar)
    for is_of, named in _NAMED:
        if getattr(pyarrow.types, is_of)(scalar.type):
            return named(field, scalar)
    value = _as_python(scalar)
    if isinstance(value, str | int | float | bool | None) and value is not None:
        return value
    return _text(field, scalar)


def _as_python(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, TypeError, NotImplementedError, AttributeError, ImportError):
        return None


def _text(field: str, scalar: Any) -> str:
    """Arrow's own text of a value. Raises `LineProblem`."""
    import pyarrow

    try:
        return str(scalar.cast(pyarrow.string()).as_py())
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise LineProblem(field, f"has a value of type {scalar.type} that has no text; cast the column") from error


def _string(field: str, scalar: Any) -> str:
    try:
        return str(scalar.as_py())
    except UnicodeDecodeError as error:
        raise LineProblem(
            field, f"is not UTF-8 (byte {error.start + 1}); cast the column to a string of valid UTF-8"
        ) from error


def _binary(field: str, scalar: Any) -> str:
    way_out = "cast the column to a string, or leave it out with --metadata-columns"
    raise LineProblem(field, f"is binary ({len(scalar.as_buffer())} bytes); {way_out}")


def _float(scalar: Any) -> float | None:
    """The number that was written: 0.7 for the 0.699999988 that a narrow column holds."""
    value = float(scalar.as_py())
    if value != value:
        return None
    import numpy

    narrow = {16: numpy.float16, 32: numpy.float32}.get(scalar.type.bit_width)
    return value if narrow is None else float(str(narrow(value)))


def _decimal(scalar: Any) -> int | float | str:
    """A number where no digit is lost, its text otherwise; databases write whole numbers as decimals too."""
    exact = scalar.as_py()
    if scalar.type.scale <= 0:
        return int(exact)
    return float(exact) if Decimal(repr(float(exact))) == exact else str(exact)


def _timestamp(scalar: Any) -> str:
    """ISO 8601, to the nanosecond and in any year, in the column's time zone."""
    units = UNITS[scalar.type.unit]
    seconds, fraction = divmod(scalar.value, units)
    nanoseconds = fraction * 10**9 // units
    try:
        moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds, microseconds=nanoseconds // 1000)
        moment = moment.astimezone(_zone(scalar.type.tz))
    except OverflowError:
        import numpy

        digits = {1: "", 10**3: f".{fraction:03}", 10**6: f".{fraction:06}", 10**9: f".{fraction:09}"}[units]
        return f"{numpy.datetime64(seconds, 's')}{digits if fraction else ''}{'+00:00' if scalar.type.tz else ''}"
    clock = moment.replace(tzinfo=None)
    text = clock.isoformat()
    if nanoseconds % 1000:
        text = f"{clock.isoformat(timespec='microseconds')}{nanoseconds % 1000:03}"
    return text + (moment.isoformat()[len(clock.isoformat()) :] if scalar.type.tz else "")


def _zone(name: str | None) -> Any:
    """The time zone of a column; UTC for one that this machine does not know."""
    import pyarrow

    try:
        return UTC if name is None else pyarrow.lib.string_to_tzinfo(name)
    except (pyarrow.ArrowException, ValueError, KeyError, ImportError):  # of zoneinfo, pytz and Arrow
        return UTC


def _date(scalar: Any) -> str:
    if (value := _as_python(scalar)) is not None:
        return str(value.isoformat())
    import numpy

    days = scalar.value if str(scalar.type).startswith("date32") else scalar.value // 86_400_000
    return str(numpy.datetime64(days, "D"))


def _time(scalar: Any) -> str:
    """ISO 8601: 01:02:03; a duration where it is not a time of day."""
    units = UNITS[scalar.type.unit]
    seconds, fraction = divmod(scalar.value, units)
    if not 0 <= seconds < 86_400:
        return _duration(scalar)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    digits = 6 if units <= UNITS["us"] else 9
    return text + (f".{fraction * 10**digits // units:0{digits}}" if fraction else "")


def _duration(scalar: Any) -> str:
    """ISO 8601: PT1.5S."""
    units = UNITS[scalar.type.unit]
    seconds, fraction = divmod(abs(scalar.value), units)
    text = str(seconds) + (f".{fraction * 10**9 // units:09}".rstrip("0") if fraction else "")
    return f"{'-' if scalar.value < 0 else ''}PT{text}S"


def _list(field: str, scalar: Any) -> list[Any]:
    return [json_value(field, inner) for inner in scalar.values or ()]


def _struct(field: str, scalar: Any) -> dict[str, Any]:
    """An object without its nulls, which a struct has for each key that a row does not give."""
    names = [scalar.type.field(index).name for index in range(scalar.type.num_fields)]
    if len(set(names)) < len(names):
        raise LineProblem(field, f"has two parts of one name ({', '.join(names)}); rename one")
    inner = {name: json_value(field, scalar[index]) for index, name in enumerate(names)}
    return {name: value for name, value in inner.items() if value is not None}


def _map(field: str, scalar: Any) -> Any:
    """An object where the keys are strings that come once, pairs otherwise."""
    pairs = [[json_value(field, entry[0]), json_value(field, entry[1])] for entry in scalar.values or ()]
    keys = [key for key, _ in pairs]
    if all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys):
        return {key: value for key, value in pairs if value is not None}
    return pairs


#: The first that fits converts; types that are not named are asked for their Python value.
_SIMPLE: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("is_floating", _float), ("is_decimal", _decimal), ("is_timestamp", _timestamp), ("is_date", _date),
    ("is_time", _time), ("is_duration", _duration),
)  # fmt: skip
_NAMED: tuple[tuple[str, Callable[[str, Any], Any]], ...] = (
    ("is_string", _string), ("is_large_string", _string), ("is_string_view", _string),
    ("is_binary", _binary), ("is_large_binary", _binary), ("is_fixed_size_binary", _binary),
    ("is_binary_view", _binary), ("is_map", _map), ("is_struct", _struct),
    ("is_list", _list), ("is_large_list", _list), ("is_fixed_size_list", _list), ("is_list_view", _list),
    ("is_large_list_view", _list),
)  # fmt: skip
