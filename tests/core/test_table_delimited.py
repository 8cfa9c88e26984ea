"""CSV and TSV: what is read, which types come of it, and what a refusal says."""

import csv
import io
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DatasetError, DatasetTooLargeError
from core.table import inspect_table, preview_table, read_table
from core.table.columns import NULL_STRINGS

CARD = "4111-1111"


def opener(data):
    content = data.encode() if isinstance(data, str) else data
    return lambda: pa.BufferReader(content)


def read(data, kind="csv", **options):
    return read_table(opener(data), kind, **options)


def dtypes(data, kind="csv"):
    return {column.name: column.dtype for column in inspect_table(opener(data), kind).columns}


def failure(data, kind="csv", **options):
    """The error of reading, which must be the error of inspecting too."""
    with pytest.raises(DatasetError) as reading:
        read(data, kind, **options)
    if not options:
        with pytest.raises(DatasetError) as inspecting:
            inspect_table(opener(data), kind)
        assert inspecting.value.message == reading.value.message
        assert inspecting.value.details == reading.value.details
    assert len(reading.value.message) <= 100
    assert CARD not in reading.value.message
    return reading.value


def plain(table):
    return {
        name: pa.string() if pa.types.is_dictionary(kind) else kind
        for name, kind in zip(table.schema.names, table.schema.types, strict=True)
    }


KINDS = {pa.int64(): "integer", pa.float64(): "float", pa.bool_(): "boolean", pa.string(): "string"}


def assert_agreement(data):
    """Reading and inspecting tell the same types, row count and null counts."""
    table, info = read(data), inspect_table(opener(data), "csv")
    kinds = {name: KINDS.get(kind, "date") for name, kind in plain(table).items()}
    assert {column.name: column.dtype for column in info.columns} == kinds
    assert info.rows == table.num_rows
    assert [column.null_count for column in info.columns] == [column.null_count for column in table.columns]
    return table


def test_each_kind_of_column_gets_its_type():
    data = "i,f,b,s,d,t,n\n1,1.5,true,x,2024-01-01,2024-01-01 10:00:00,\n2,2,False,y,2024-01-02,2024-01-02,\n"
    table = assert_agreement(data)
    assert plain(table) == {
        "i": pa.int64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "s": pa.string(),
        "d": pa.date32(),
        "t": pa.timestamp("s"),
        "n": pa.string(),
    }
    assert table["i"].to_pylist() == [1, 2]
    assert dtypes(data)["t"] == "date"


def test_zeros_and_ones_are_integers_and_not_booleans():
    assert dtypes("a,b\n0,1\n1,0\n") == {"a": "integer", "b": "integer"}


def test_times_of_day_in_text_are_strings():
    assert read("a,b\n10:30:00,1\n11:00:00,2\n")["a"].to_pylist() == ["10:30:00", "11:00:00"]


@pytest.mark.parametrize("null", [*NULL_STRINGS, '""', '"NA"'])
def test_null_strings_are_null_in_columns_of_every_type(null):
    table = assert_agreement(f"n,s,d\n1.5,x,2024-01-01\n{null},{null},{null}\n")
    assert [column.null_count for column in table.columns] == [1, 1, 1]


def test_repeated_text_is_dictionary_encoded_with_one_dictionary_across_blocks():
    table = read("a,b\n" + "".join(f"{i % 3}x,{'y' * 50}{i % 2}\n" for i in range(60_000)))
    assert table["b"].num_chunks > 2
    assert pa.types.is_dictionary(table.schema.field("b").type)
    assert all(chunk.dictionary.equals(table["b"].chunk(0).dictionary) for chunk in table["b"].chunks)


def test_text_with_many_values_falls_back_to_plain_strings():
    table = read("a,b\n" + "".join(f"name {i},1\n" for i in range(5000)))
    assert table.schema.field("a").type == pa.string()


@pytest.mark.parametrize(
    ("usual", "last", "dtype"),
    [
        ("1", "2.5", "float"),
        ("1", "x", "string"),
        ("1", "true", "string"),
        ("1", "2024-01-01", "string"),
        ("1.5", "x", "string"),
        ("true", "x", "string"),
        ("true", "1", "string"),
        ("2024-01-01", "x", "string"),
        ("2024-01-01", "2024-01-01 10:00:00", "date"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00.125", "date"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00.5Z", "date"),
        ("2024-01-01T00:00:00Z", "2024-01-01", "string"),
        ("", "7", "integer"),
        ("", "2024-01-01", "date"),
        ("", "x", "string"),
        ("0x1F", "1.5", "string"),
        (" 1", " 2.5 ", "float"),
        ("1", "99999999999999999999", "float"),
    ],
)
def test_the_last_of_many_blocks_decides_the_type(usual, last, dtype):
    filler = "abcdefghij" * 10
    data = "v,filler,w\n" + f"{usual},{filler},1\n" * 30_000 + f"{last},{filler},2.5\n"
    table = assert_agreement(data)
    assert dtypes(data) == {"v": dtype, "filler": "string", "w": "float"}
    assert table.num_rows == 30_001
    if dtype == "string":
        assert table["v"][30_000].as_py() == last
        assert table["v"][0].as_py() == (usual or None)


def test_more_surprises_than_attempts_still_end_in_a_table():
    names = [f"c{i}" for i in range(12)]
    rows = [",".join(["0x1F"] * 12)] * 30_000 + [",".join(["1.5"] * 12)]
    table = assert_agreement(",".join(names) + "\n" + "\n".join(rows))
    assert set(plain(table).values()) == {pa.string()}


def test_chosen_columns_come_in_the_order_asked_for():
    table = read("a,b,c\n1,x,2.5\n", columns=["c", "a"])
    assert table.to_pydict() == {"c": [2.5], "a": [1]}


def test_unknown_and_empty_choices_of_columns_are_refused():
    error = failure("a,b\n1,2\n", columns=["a", "z"])
    assert '"z"' in error.message
    assert error.details["column"] == "z"
    failure("a,b\n1,2\n", columns=[])


def test_a_surprise_in_a_column_behind_others_widens_that_column():
    data = "a,b,c\n" + "1,2,3\n" * 300_000 + "1,2,x\n"
    assert plain(read(data, columns=["c", "a"])) == {"c": pa.string(), "a": pa.int64()}


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1,é\n".encode(),
        b"\xef\xbb\xbf" + "a,b\n1,é\n".encode(),
        "a,b\n1,é\n".encode("utf-16"),
        b"\xfe\xff" + "a,b\n1,é\n".encode("utf-16-be"),
        "a,b\r\n1,é\r\n".encode(),
        "a,b\n1,é".encode(),
        "a,b\n1,é\n\n\r\n\n".encode(),
        "\n\na,b\n1,é\n".encode(),
        "a,b\r1,é\r".encode(),
        "a;b\n1;é\n".encode(),
        "a\tb\n1\té\n".encode(),
        "a|b\n1|é\n".encode(),
        '"a"|"b"\n1|é\n'.encode(),
    ],
)
def test_encodings_line_ends_and_delimiters_do_not_change_the_table(content):
    assert read(content).to_pydict() == {"a": [1], "b": ["é"]}


def test_a_long_utf16_file_is_transcoded_across_blocks():
    rows = "".join(f"{i},žluťoučký 😀 {i}\n" for i in range(100_000))
    table = assert_agreement(("a,b\n" + rows).encode("utf-16"))
    assert table["b"][99_999].as_py() == "žluťoučký 😀 99999"


def test_a_comma_in_the_header_keeps_other_delimiters_in_fields():
    assert read("a,b;c\n1,2;3\n").to_pydict() == {"a": [1], "b;c": ["2;3"]}
    assert read('"x,y";b\n1;2\n').to_pydict() == {"x,y": [1], "b": [2]}


def test_tsv_splits_at_tabs_alone():
    assert read("a,b\tc\n1\t2,x\n", "tsv").to_pydict() == {"a,b": [1], "c": ["2,x"]}


def test_quoted_line_breaks_delimiters_and_quotes_belong_to_the_field():
    table = read('a,b\n1,"x\r\ny, ""z"""\n2,5" pipe\n')
    assert table["b"].to_pylist() == ['x\r\ny, "z"', '5" pipe']


def test_quoted_line_breaks_may_straddle_blocks():
    field = "line\n" * 500
    data = "a,b\n" + f'1,"{field}"\n' * 2_000
    assert assert_agreement(data).num_rows == 2_000


def test_an_odd_quote_inside_a_field_is_only_a_character():
    assert read('a,b\n1,5"\n2,x\n')["b"].to_pylist() == ['5"', "x"]


@pytest.mark.parametrize("data", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_refused(data):
    assert "empty" in failure(data).message


@pytest.mark.parametrize("data", ["a,b\n", "a,b", "a,b\n\n"])
def test_a_header_alone_is_refused(data):
    assert "rows" in failure(data).message


def test_blank_column_names_are_refused():
    error = failure("a,,c\n1,2,3\n")
    assert error.details["line"] == 1
    assert "column 2" in error.message
    failure("a, ,c\n1,2,3\n")


def test_duplicate_column_names_are_named():
    error = failure("a,b,a,b\n1,2,3,4\n")
    assert '"a", "b"' in error.message
    assert error.details["column"] == "a"


@pytest.mark.parametrize("row", [f"1,2,3,4,{CARD}", f"1,{CARD},3"])
@pytest.mark.parametrize("blocks", [0, 400_000])
def test_a_ragged_row_is_named_by_line_and_lengths(row, blocks):
    before = '1,"x\ny",3,4\n\n' + "1,2,3,4\n" * blocks
    error = failure(f"a,b,c,d\n{before}{row}\n1,2,3,4\n")
    fields = row.count(",") + 1
    assert error.details["line"] == 5 + blocks
    assert error.message.startswith(f"Line {5 + blocks} has {fields} fields where the header has 4")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('1,2\n3,"4\n5,6\n', 3),
        ('1,2\n3,"4', 3),
        ('1,2\n"3', 3),
        ('1,"x\ny"\n"a\nb","open\n5,6\n7,8\n', 5),
        ("1,2\n" * 10 + f'3,"{CARD},' + "x\n" * 800_000, 12),
        ("1,2\n" * 400_000 + '3,"4\n5,6\n', 400_002),
        ('1,"4\r\n5,6\r\n', 2),
    ],
)
def test_an_unclosed_quote_is_named_by_the_line_where_it_opened(rows, line):
    error = failure(f"a,b\n{rows}")
    assert error.details["line"] == line
    assert "quote" in error.message


@pytest.mark.parametrize("column", ["text", "number"])
@pytest.mark.parametrize("blocks", [0, 400_000])
def test_bytes_that_are_not_utf8_are_named_by_line(column, blocks):
    row = b"7,\xff\n" if column == "text" else b"\xff,x\n"
    error = failure(b"number,text\n" + b"1,x\n" * (blocks + 2) + row)
    assert error.details["line"] == blocks + 4
    assert "UTF-8" in error.message


def test_bytes_that_are_not_utf8_are_found_in_the_header():
    assert failure(b"a,\xff\n1,2\n").details["line"] == 1


def test_utf16_without_a_mark_or_cut_short_is_refused():
    assert failure("a,b\n1,2\n".encode("utf-16-le")).details["line"] == 1
    assert failure("a,b\n1,2\n3,4".encode("utf-16")[:-1]).details["line"] == 3


@pytest.mark.parametrize(
    ("data", "column", "line"),
    [
        ("a;b\n1;x\n2,5;y\n3;x\n", "a", 3),
        ('a,b\n1,"x\ny"\n"1.234,5",z\n', "a", 4),
        ('a,b\nx,"-,5"\ny,\n', "b", 2),
        ("a;b\n" + "1;x\n" * 400_000 + "2,5;y\n", "a", 400_002),
    ],
)
def test_a_column_of_decimal_commas_is_refused(data, column, line):
    error = failure(data)
    assert (error.details["column"], error.details["line"]) == (column, line)
    assert "decimal point" in error.message


@pytest.mark.parametrize("values", [["1,5", "about 2"], ["1,2,3", "4"], ["a,5", "1"]])
def test_text_with_commas_is_no_column_of_decimal_commas(values):
    assert read("a;b\n" + "".join(f"{value};1\n" for value in values))["a"].to_pylist() == values


def test_decimal_commas_in_columns_left_out_do_not_matter():
    assert read("a;b\n1,5;2\n", columns=["b"]).to_pydict() == {"b": [2]}


def test_a_row_longer_than_a_block_is_refused():
    names = ",".join(f"c{i}" for i in range(20))
    row = ",".join(["y" * 60_000] * 20)
    assert "1 MiB" in failure(f"{names}\n{row}\n").message


def test_sheet_name_is_refused():
    assert "sheet" in failure("a,b\n1,2\n", sheet_name="S").message


@pytest.mark.parametrize("function", [inspect_table, read_table])
def test_limits_name_both_numbers(function):
    data = opener("a,b,c\n" + "1,2,3\n" * 50)
    with pytest.raises(DatasetTooLargeError, match=r"2 columns.*3"):
        function(data, "csv", max_columns=2)
    with pytest.raises(DatasetTooLargeError, match=r"49 rows.*50"):
        function(data, "csv", max_rows=49)
    assert inspect_table(data, "csv", max_rows=50, max_columns=3).rows == 50


class CountingFile(io.BytesIO):
    count = 0

    def read(self, size=-1):
        data = super().read(size)
        type(self).count += len(data)
        return data


def test_a_preview_reads_the_beginning_of_the_file_only():
    content = b"a,b\n" + b"1,some text\n" * 2_000_000

    class File(CountingFile):
        pass

    table = preview_table(lambda: pa.PythonFile(File(content), "r"), "csv", 5)
    assert table.to_pydict() == {"a": [1] * 5, "b": ["some text"] * 5}
    assert File.count < len(content) / 3


@pytest.mark.parametrize("fault", ["x,y\n", "1,2,3\n"])
@pytest.mark.parametrize("rows", [3, 17_500])
def test_a_preview_is_not_touched_by_what_comes_after_it(fault, rows):
    filler = "f" * 67
    data = "a,b\n" + f"1,{filler}\n" * 20_000 + fault
    table = preview_table(opener(data), "csv", rows)
    assert table.to_pydict() == {"a": [1] * rows, "b": [filler] * rows}


def test_a_preview_of_more_rows_than_there_are_is_the_table():
    assert preview_table(opener("a,b\n1,x\n2,y\n"), "csv", 100).to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


def test_a_preview_reads_rows_longer_than_its_small_blocks():
    data = "a,b\n" + f"1,{'x' * 300_000}\n" * 3
    assert preview_table(opener(data), "csv", 2).num_rows == 2


def test_a_file_object_of_python_is_read_like_a_file():
    content = b"a,b\n" + b"1,x\n" * 1000
    assert read_table(lambda: pa.PythonFile(io.BytesIO(content), "r"), "csv").num_rows == 1000


def test_inspecting_holds_a_few_blocks_and_not_the_file():
    content = b"a,b\n" + b"123456,some text that is longer\n" * 4_000_000
    pool = pa.default_memory_pool()
    pool.release_unused()
    before = pool.bytes_allocated()
    assert inspect_table(opener(content), "csv").rows == 4_000_000
    assert pool.bytes_allocated() - before < len(content) / 8


numbers = st.integers(-(2**62), 2**62)
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)


@given(
    st.lists(st.tuples(st.none() | numbers, st.none() | floats, texts), min_size=1, max_size=20),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_pythons_csv_writes_is_read_back(rows, delimiter, line_end):
    # a marker before each text keeps it text: bare "1" or "NA" would rightly be something else
    rows = [(i, f, "t" + text) for i, f, text in rows] + [(1, 0.5, "t")]
    sink = io.StringIO(newline="")
    # Python 3.11 does not quote a lone carriage return, which other readers take for the end of a line
    quoting = csv.QUOTE_ALL if any("\r" in text for _, _, text in rows) else csv.QUOTE_MINIMAL
    writer = csv.writer(sink, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerow(["i", "f", "t"])
    writer.writerows(rows)
    table = assert_agreement(sink.getvalue())
    assert table["i"].to_pylist() == [i for i, _, _ in rows]
    assert all(
        a is b is None or math.isclose(a, b, rel_tol=0, abs_tol=0)
        for a, b in zip(table["f"].to_pylist(), [f for _, f, _ in rows], strict=True)
    )
    assert table["t"].to_pylist() == [t for _, _, t in rows]
