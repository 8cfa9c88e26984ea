"""XLSX: types, sheets, formulas, and files that are larger than they look."""

import datetime as dt
import io
import re
import zipfile

import openpyxl
import pyarrow as pa
import pytest

from core.errors import DatasetError, DatasetTooLargeError
from core.table import inspect_table, preview_table, read_table


def workbook(**sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


def rewritten(content, member, change):
    """The same archive with one member changed, as openpyxl would never write it."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename == member else data)
    return sink.getvalue()


SHEET = "xl/worksheets/sheet1.xml"


def opener(content):
    return lambda: pa.BufferReader(content)


def read(content, **options):
    return read_table(opener(content), "xlsx", **options)


def described(content):
    info = inspect_table(opener(content), "xlsx")
    return info.rows, {column.name: (column.dtype, column.null_count) for column in info.columns}


def failure(content, **options):
    with pytest.raises(DatasetError) as reading:
        read(content, **options)
    if not options:
        with pytest.raises(DatasetError) as inspecting:
            inspect_table(opener(content), "xlsx")
        assert inspecting.value.message == reading.value.message
    assert len(reading.value.message) <= 100
    return reading.value


def test_each_kind_of_cell_gets_its_type():
    day = dt.datetime(2024, 1, 2)
    rows = [["i", "f", "b", "s", "d", "n"], [1, 1, True, "x", day, None], [2, 1.5, False, "NA", None, None]]
    table = read(workbook(S=rows))
    kinds = [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.timestamp("us"), pa.string()]
    assert table.schema.types == kinds
    assert table.to_pylist()[0] == {"i": 1, "f": 1.0, "b": True, "s": "x", "d": day, "n": None}
    assert described(workbook(S=rows)) == (
        2,
        {
            "i": ("integer", 0),
            "f": ("float", 0),
            "b": ("boolean", 0),
            "s": ("string", 1),
            "d": ("date", 1),
            "n": ("string", 2),
        },
    )


@pytest.mark.parametrize(
    ("usual", "last", "dtype"),
    [(1, 1.5, "float"), (1, "x", "string"), (None, 3, "integer"), (True, 1, "string"), (1, 10**25, "float")],
)
def test_the_last_of_many_chunks_decides_the_type(usual, last, dtype):
    content = workbook(S=[["a", "b"], *[[usual, 1]] * 5000, [last, 1]])
    table = read(content)
    rows, columns = described(content)
    assert rows == table.num_rows == 5001
    assert columns["a"] == (dtype, table["a"].null_count)
    if dtype == "string":
        assert table["a"].to_pylist() == [*[str(usual)] * 5000, str(last)]


def test_the_first_sheet_is_read_unless_another_is_named():
    content = workbook(One=[["a"], [1]], Two=[["b"], [2]])
    assert read(content).to_pydict() == {"a": [1]}
    assert read(content, sheet_name="Two").to_pydict() == {"b": [2]}
    error = failure(content, sheet_name="Three")
    assert '"One", "Two"' in error.message
    assert error.details["sheets"] == ["One", "Two"]


def test_formulas_are_read_as_their_saved_values():
    content = workbook(S=[["a", "b"], [1, 7]])
    cell = rb'<c r="B2" t="n"><v>7</v></c>'
    formula = b'<c r="B2"><f>A2*42</f><v>42</v></c>'
    changed = rewritten(content, SHEET, lambda xml: xml.replace(cell, formula))
    assert read(changed)["b"].to_pylist() == [42]


def test_empty_rows_are_left_out_and_line_numbers_still_count_them():
    rows = [[], ["a", "b"], [1, 2], [], [3, 4], [None, None]]
    assert read(workbook(S=rows)).to_pydict() == {"a": [1, 3], "b": [2, 4]}
    assert failure(workbook(S=[*rows, [5, "#DIV/0!"]])).details["line"] == 7


@pytest.mark.parametrize(
    ("rows", "claim", "line"),
    [
        ([["a", None, "c"], [1, 2, 3]], "column 2", 1),
        ([["a", "a"], [1, 2]], "duplicates", 1),
        ([["a", "b"], [1, 2], [1, 2, 3]], "row 3", 3),
        ([["a", "b"], [1, dt.time(1, 2)]], "time", 2),
        ([["a", "b"], ["1,5", 1], ["2", 1]], "decimal point", 2),
        ([["a", "b"], *[[1, 1]] * 5000, ["1,5", 1]], "decimal point", 5002),
        ([["a", "b"]], "rows", None),
        ([], "column", None),
    ],
)
def test_faults_are_named(rows, claim, line):
    error = failure(workbook(S=rows))
    assert claim in error.message
    assert line is None or error.details["line"] == line


def test_chosen_columns_come_in_the_order_asked_for():
    content = workbook(S=[["a", "b", "c"], [1, "x", 2]])
    assert read(content, columns=["c", "a"]).to_pydict() == {"c": [2], "a": [1]}
    assert '"z"' in failure(content, columns=["z"]).message


def test_a_preview_is_the_first_rows():
    content = workbook(S=[["a"], *[[i] for i in range(100)]])
    assert preview_table(opener(content), "xlsx", 3).to_pydict() == {"a": [0, 1, 2]}


def test_damaged_files_are_refused():
    content = workbook(S=[["a"], [1]])
    cut_sheet = rewritten(content, SHEET, lambda xml: xml[: len(xml) // 2])
    no_book = rewritten(content, "xl/workbook.xml", lambda _: b"<a/>")
    for damaged in (b"", b"a,b\n1,2\n", content[: len(content) // 2], cut_sheet, no_book):
        assert "XLSX" in failure(damaged).message


@pytest.mark.parametrize("function", [inspect_table, read_table])
def test_limits_name_both_numbers(function):
    content = opener(workbook(S=[["a", "b", "c"], *[[1, 2, 3]] * 50]))
    with pytest.raises(DatasetTooLargeError, match=r"2 columns.*3"):
        function(content, "xlsx", max_columns=2)
    with pytest.raises(DatasetTooLargeError, match=r"49 rows.*50"):
        function(content, "xlsx", max_rows=49)


@pytest.mark.parametrize(("member", "size"), [(SHEET, 99), ("xl/styles.xml", 300)])
def test_a_file_that_unpacks_to_a_thousand_times_its_size_is_refused_unopened(member, size):
    padding = b" " * (size << 20)
    content = rewritten(workbook(S=[["a"], [1]]), member, lambda xml: xml + padding)
    assert len(content) < 1 << 20
    with pytest.raises(DatasetTooLargeError, match=rf"unpacks to {size} MiB and may to \d+"):
        inspect_table(opener(content), "xlsx")


def test_dimensions_that_a_sheet_claims_are_not_believed():
    claim = b'<dimension ref="A1:XFD1048576"/>'
    content = rewritten(
        workbook(S=[["a"], [1], [2]]), SHEET, lambda xml: re.sub(rb"<dimension[^>]*/>", claim, xml)
    )
    assert read(content).to_pydict() == {"a": [1, 2]}


def test_coordinates_outside_of_any_sheet_are_damage():
    content = workbook(S=[["a"], [1], [2]])
    failure(rewritten(content, SHEET, lambda xml: xml.replace(b'r="A3"', b'r="ZZZZZZ3"')))
