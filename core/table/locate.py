"""The slow search for the line at fault, made only after a fast parser has refused a file.

The parsers' own messages quote rows and count differently from an editor; nothing of them is passed on.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from core.errors import DatasetError
from core.table.columns import Opener, shown
from core.table.text import physical_lines

_END = "\x1e end of file \x1e"


@dataclass(frozen=True, slots=True)
class _Record:
    """One row of a delimited file; ``open_line`` is where a quote opened that nothing closes."""

    line: int
    fields: list[str]
    open_line: int | None = None


def delimited_fault(open_file: Opener, delimiter: str) -> DatasetError | None:
    """The first fault in the form of a CSV or TSV file: its encoding, its quotes, the length of its rows."""
    width = None
    try:
        for record in _records(physical_lines(open_file), delimiter):
            if record.open_line is not None:
                message = f"The quote opened in line {record.open_line} is never closed; close or double it."
                return DatasetError(message, line=record.open_line)
            if width is None:
                width = len(record.fields)
            if len(record.fields) != width:
                return _ragged_error(record, width)
    except DatasetError as error:
        return error
    return empty_error() if width is None else None


def field_line(open_file: Opener, delimiter: str, column: str, wanted: Callable[[str], bool]) -> int | None:
    """The line of the first row whose field in ``column`` is as wanted."""
    records = _records(physical_lines(open_file), delimiter)
    index = next(records).fields.index(column)
    return next((record.line for record in records if wanted(record.fields[index])), None)


def json_fault(open_file: Opener) -> DatasetError | None:
    """The first line that is no JSON object of plain values, or whose values change their kind."""
    kinds: dict[str, str] = {}
    empty = True
    try:
        for number, line in enumerate(physical_lines(open_file), start=1):
            if line.strip():
                empty = False
                _check_object(line, number, kinds)
    except DatasetError as error:
        return error
    return empty_error() if empty else None


def empty_error() -> DatasetError:
    return DatasetError("A table must have a header and rows and this file is empty; send its content.")


def _ragged_error(record: _Record, width: int) -> DatasetError:
    count = len(record.fields)
    fields = "1 field" if count == 1 else f"{count} fields"
    message = f"Line {record.line} has {fields} where the header has {width}; quote or add delimiters."
    return DatasetError(message, line=record.line, fields=count, expected=width)


def _records(lines: Iterable[str], delimiter: str) -> Iterator[_Record]:
    """Parse as Arrow does, blank lines left out, and tell where each record began.

    The end of the file is marked by one more line: an open quote swallows it.
    """
    pending: list[str] = []

    def fed() -> Iterator[str]:
        for line in lines:
            pending.append(line)
            yield line
        yield _END

    reader = csv.reader(fed(), delimiter=delimiter)
    first_line = 1
    try:
        for fields in reader:
            if fields and fields[-1].endswith(_END):
                if fields != [_END]:
                    yield _Record(first_line, fields, first_line + _opening(pending, delimiter))
                return
            if fields:
                yield _Record(first_line, fields)
            first_line = reader.line_num + 1
            pending.clear()
    except csv.Error:
        # a field beyond csv.field_size_limit(), 128 KiB: the end of its quote is nowhere near
        yield _Record(first_line, [], first_line + _opening(pending[:-1] or pending, delimiter))


def _opening(lines: list[str], delimiter: str) -> int:
    """How many lines after the first of an unfinished record its last quote opens."""
    text = "".join(lines)
    last = ""
    try:
        for fields in csv.reader(lines, delimiter=delimiter):
            last = fields[-1] if fields else ""
    except csv.Error:
        return 0
    return _breaks(text) - _breaks(last)


def _breaks(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _check_object(line: str, number: int, kinds: dict[str, str]) -> None:
    try:
        value = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_Pairs)
        if isinstance(value, _Pairs):
            _check_values(value, number, kinds)
            return
    except (ValueError, RecursionError):
        pass
    else:
        message = f"Every line must be a JSON object and line {number} is another value; write {{…}} there."
        raise DatasetError(message, line=number)
    if "NaN" in line or "Infinity" in line:
        message = f"Line {number} has NaN or Infinity, which JSON lacks; write null instead."
        raise DatasetError(message, line=number)
    message = f"Every line must be a JSON object and line {number} is not valid JSON; correct it."
    raise DatasetError(message, line=number)


class _Pairs(list[tuple[str, object]]):
    """A JSON object with its duplicates."""


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def _check_values(pairs: _Pairs, number: int, kinds: dict[str, str]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        message = f"Names must differ and line {number} has {shown(twice)} twice; rename one."
        raise DatasetError(message, line=number, column=twice)
    for name, value in pairs:
        kind = _kind(value)
        if kind == "nested":
            message = f"Column {shown(name)} has a nested value in line {number}; split it into columns."
            raise DatasetError(message, line=number, column=name)
        if kind is not None and kinds.setdefault(name, kind) != kind:
            message = f"Column {shown(name)} has a {kind} in line {number} after a {kinds[name]}; use one."
            raise DatasetError(message, line=number, column=name)


def _kind(value: object) -> str | None:
    match value:
        case None:
            return None
        case bool():
            return "boolean"
        case int() | float():
            if math.isinf(value):
                raise ValueError("beyond a double")
            return "number"
        case str():
            value.encode()
            return "string"
        case _:
            return "nested"
