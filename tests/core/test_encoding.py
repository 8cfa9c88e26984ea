import datetime
import json
import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from core.encoding import Encoder, calendar
from core.errors import BundleError, DatasetError, PredictionInputError

UTC = datetime.UTC


def chunked(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


def fit(columns, rows=None, **options):
    columns = {
        name: values if isinstance(values, pa.ChunkedArray) else chunked(values)
        for name, values in columns.items()
    }
    count = len(next(iter(columns.values())))
    return Encoder.fit(columns, np.arange(count) if rows is None else np.array(rows), **options)


def features_of(encoder, **columns):
    """Features by name, as lists."""
    matrix = encoder.transform(columns).features
    return {name: matrix[:, i].tolist() for i, name in enumerate(encoder.feature_names)}


# ---------------------------------------------------------------- tables of any kind

NUMBERS = st.floats(allow_nan=False, allow_infinity=True) | st.sampled_from([0.0, 1.0, 1e300, -1e300, 5e-324])
TEXTS = st.sampled_from(["a", "b", "Oslo", "1", "true", "é", ""])
MOMENTS = st.datetimes(datetime.datetime(1950, 1, 1), datetime.datetime(2100, 1, 1))
KINDS = {
    pa.float64(): NUMBERS | st.just(math.nan),
    pa.float32(): st.floats(width=32),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.int8(): st.integers(-3, 3),
    pa.bool_(): st.booleans(),
    pa.string(): TEXTS,
    pa.timestamp("us"): MOMENTS,
    pa.timestamp("s", "UTC"): MOMENTS.map(lambda m: m.replace(microsecond=0, tzinfo=UTC)),
    pa.date32(): st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31)),
}


@st.composite
def tables(draw):
    """Arrow columns of every kind with nulls, in chunks, and the training rows."""
    n = draw(st.integers(2, 25))
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=5))
    columns = {}
    for i, kind in enumerate(kinds):
        values = draw(st.lists(st.none() | KINDS[kind], min_size=n, max_size=n))
        cut = draw(st.integers(0, n))
        columns[f"c{i}"] = pa.chunked_array([pa.array(values[:cut], kind), pa.array(values[cut:], kind)])
    rows = draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True).map(sorted))
    return columns, np.array(rows)


def fit_or_reject(columns, rows, **options):
    try:
        return Encoder.fit(columns, rows, **options)
    except DatasetError:
        assume(False)


def same(left, right):
    assert left.features.tobytes() == right.features.tobytes()
    assert left.unseen_counts == right.unseen_counts
    assert left.null_counts == right.null_counts


@given(tables())
def test_lists_arrow_and_dictionaries_encode_to_the_same_bits(case):
    columns, rows = case
    encoder = fit_or_reject(columns, rows)
    table = encoder.transform(columns)
    lists = {name: column.to_pylist() for name, column in columns.items()}
    same(table, encoder.transform(lists))
    same(table, encoder.transform({name: column.combine_chunks() for name, column in columns.items()}))
    same(table, encoder.transform({name: column.dictionary_encode() for name, column in columns.items()}))
    first = next(iter(columns))
    same(table, encoder.transform({**columns, first: lists[first]}))
    for row in range(len(columns[first])):
        one = encoder.transform({name: values[row : row + 1] for name, values in lists.items()})
        assert one.features.tobytes() == table.features[row : row + 1].tobytes()


@given(tables())
def test_an_encoder_survives_its_state(case):
    columns, rows = case
    encoder = fit_or_reject(columns, rows)
    header, arrays = encoder.to_state()
    again = Encoder.from_state(json.loads(json.dumps(header, allow_nan=False)), arrays)
    same(encoder.transform(columns), again.transform(columns))
    assert again.columns == encoder.columns
    assert again.warnings == encoder.warnings
    assert again.feature_names == encoder.feature_names
    assert again.never_active().tolist() == encoder.never_active().tolist()


@given(tables())
def test_features_are_finite_float32_in_c_order_with_one_name_each(case):
    columns, rows = case
    encoder = fit_or_reject(columns, rows)
    encoded = encoder.transform(columns)
    assert encoded.features.dtype == np.float32
    assert encoded.features.flags.c_contiguous
    assert encoded.features.shape == (len(columns["c0"]), encoder.width)
    assert encoder.width == len(encoder.feature_names)
    assert np.isfinite(encoded.features).all()


@given(tables())
def test_only_training_rows_are_learned_from(case):
    columns, rows = case
    encoder = fit_or_reject(columns, rows)
    alone = {name: column.take(pa.array(rows)) for name, column in columns.items()}
    again = Encoder.fit(alone, np.arange(len(rows)))
    same(encoder.transform(columns), again.transform(columns))


@given(tables())
def test_idle_features_are_zero_in_training_and_no_others_are(case):
    columns, rows = case
    encoder = fit_or_reject(columns, rows)
    trained = encoder.transform(columns).features[rows]
    idle = np.flatnonzero((trained == 0).all(axis=0))
    # A standardised value may still round to zero in float32 or belong to a column that is all median.
    assert set(encoder.never_active().tolist()) <= set(idle.tolist())
    names = np.array(encoder.feature_names)[idle]
    assert all(
        i in encoder.never_active()
        for i, name in zip(idle, names, strict=True)
        if "=" in name or "null" in name
    )


@given(tables())
def test_consuming_takes_the_columns_and_changes_nothing_else(case):
    columns, rows = case
    encoder = fit_or_reject(columns, rows)
    expected = encoder.transform(columns)
    for given_columns in (dict(columns), {name: column.to_pylist() for name, column in columns.items()}):
        given_columns["extra"] = [1]
        same(expected, encoder.transform(given_columns, consume=True))
        assert not given_columns.keys() & {spec.name for spec in encoder.columns}
        assert "extra" in given_columns


def test_a_consumed_column_is_freed_before_the_next_kind_is_encoded():
    columns = {"x": chunked(np.arange(100_000.0)), "city": chunked(["a", "b"] * 50_000)}
    encoder = fit(columns)
    left = []

    class Watched(dict):
        def __delitem__(self, name):
            super().__delitem__(name)
            left.append(sorted(self))

    encoder.transform(Watched(columns), consume=True)
    assert left == [["city"], []]


@pytest.mark.parametrize("count", [1, 8_191, 8_192, 8_193, 20_000])
def test_blocks_of_rows_join_without_a_seam(count):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(18, count + 2))
    values[rng.random(values.shape) < 0.01] = np.nan
    columns = {f"x{i}": chunked(column) for i, column in enumerate(values)}
    columns["city"] = chunked(rng.choice(["a", "b", "c"], count + 2))
    columns["when"] = chunked(rng.integers(0, 2**31, count + 2), pa.timestamp("s"))
    encoder = fit(columns)
    same(encoder.transform(columns), encoder.transform({name: c.to_pylist() for name, c in columns.items()}))


# ---------------------------------------------------------------- numeric


@given(
    st.lists(st.none() | st.floats(-1e6, 1e6), min_size=2, max_size=40), st.sampled_from([0.0, 1.7e9, -3e12])
)
def test_numbers_are_imputed_and_standardised_as_scikit_learn_does(values, offset):
    given_values = np.array([np.nan if v is None else round(v, 1) + offset for v in values])
    known = given_values[~np.isnan(given_values)]
    assume(len(known) > 1 and np.ptp(known) >= 0.1)
    encoder = fit({"x": given_values})
    features = encoder.transform({"x": chunked(given_values)}).features
    imputed = SimpleImputer(strategy="median").fit_transform(given_values[:, None])
    imputed -= np.median(known)  # scikit-learn itself loses digits to the offset
    expected = StandardScaler().fit_transform(imputed)[:, 0]
    # a mean near 3e12 is off by up to 2.5e-4, half the spacing of float64, against deviations from 0.0156
    np.testing.assert_allclose(features[:, 0], expected, rtol=1e-6, atol=1e-6 if offset == 0 else 2e-2)
    assert encoder.feature_names == (("x", "x is null") if np.isnan(given_values).any() else ("x",))


def test_a_huge_offset_costs_no_digits():
    seconds = 1.7e9 + np.random.default_rng(1).integers(0, 1000, 100_000)
    z = fit({"t": seconds}).transform({"t": chunked(seconds)}).features[:, 0].astype(np.float64)
    # the mean of 1e5 float32 roundings of values near 1 is below 1e-7
    assert abs(z.mean()) < 1e-7
    assert abs(z.std() - 1) < 1e-6


@pytest.mark.parametrize("scale", [1e308, 1e200, 1e-200, 1e-300])
def test_extreme_magnitudes_are_standardised(scale):
    values = np.array([-1.0, 0.0, 1.0, 1.0]) * scale
    features = fit({"x": values}).transform({"x": chunked(values)}).features[:, 0]
    np.testing.assert_allclose(
        features, StandardScaler().fit_transform([[-1], [0], [1], [1]])[:, 0], rtol=1e-6
    )


def test_subnormal_spreads_do_not_divide_by_zero():
    encoder = fit({"x": [0.0, 5e-324, 0.0, 0.0, 0.0]})
    assert np.isfinite(encoder.transform({"x": [0.0, 1.0]}).features).all()
    Encoder.from_state(*encoder.to_state())


def test_infinities_and_nan_count_as_null():
    encoder = fit({"x": [1.0, 2.0, math.inf, math.nan, None, 3.0]})
    found = features_of(encoder, x=[1.0, -math.inf, "nan", "inf", None, 2])
    assert found["x is null"] == [0, 1, 1, 1, 1, 0]
    assert found["x"][1:] == [0.0] * 5
    assert encoder.transform({"x": [math.inf, 2.0]}).null_counts == {"x": 1}


@pytest.mark.parametrize("given", [10**400, -(10**309)])
def test_integer_beyond_float64_is_an_error_of_its_row(given):
    encoder = fit({"x": [1.0, 2.0, None, 3.0]})
    with pytest.raises(PredictionInputError, match=r"Row 1: column 'x' needs a number of at most 1\.8e308"):
        encoder.transform({"x": [1, given]})


def test_nulls_that_training_had_none_of_are_imputed_and_counted():
    encoder = fit({"x": [1.0, 2.0, 9.0]})
    encoded = encoder.transform({"x": [None, 2.0]})
    assert encoder.feature_names == ("x",)
    assert encoded.features[0] == encoded.features[1]
    assert encoded.null_counts == {"x": 1}


def test_a_value_a_million_deviations_away_stays_finite():
    encoder = fit({"x": [0.0, 1.0]})
    assert encoder.transform({"x": [1e308, -1e308]}).features[:, 0].tolist() == [1e6, -1e6]


def test_a_constant_is_ignored_unless_its_nulls_say_something():
    encoder = fit(
        {"same": [5, 5, 5], "x": [1, 2, 3], "flag": [7, None, 7], "none": pa.chunked_array([pa.nulls(3)])}
    )
    assert [spec.name for spec in encoder.columns] == ["x", "flag"]
    assert encoder.warnings == (
        "Column 'same' is ignored: it has one value.",
        "Column 'none' is ignored: it has no values in the training rows.",
    )
    assert [encoder.feature_names[i] for i in encoder.never_active()] == ["flag"]
    assert features_of(encoder, x=[1, 1], flag=[7, None])["flag is null"] == [0, 1]


def test_numeric_text_is_a_number():
    encoder = fit({"x": [0.0, 1.0, 12.5]})
    found = features_of(encoder, x=["12.5", " 1 ", 12.5, 1])["x"]
    assert found[:2] == found[2:]
    for variant in (["12.5", "1"], pa.array(["12.5", "1"]), pa.array(["12.5", "1"]).dictionary_encode()):
        assert encoder.transform({"x": variant}).features[:, 0].tolist() == found[:2]


# ---------------------------------------------------------------- boolean


def test_booleans_stay_zero_and_one_and_nulls_take_the_more_frequent():
    encoder = fit({"b": [True, True, False, None]})
    found = features_of(encoder, b=[True, False, None, 1, 0, "true", "False", "1", 0.0])
    assert found == {"b": [1, 0, 1, 1, 0, 1, 0, 1, 0], "b is null": [0, 0, 1, 0, 0, 0, 0, 0, 0]}
    assert fit({"b": [True, False]}).transform({"b": [None]}).features.tolist() == [[0]]


@pytest.mark.parametrize("variant", [["yes"], [2], [0.5], [[1]], [{}], pa.array(["yes"]), pa.array([2])])
def test_other_values_are_no_booleans(variant):
    with pytest.raises(PredictionInputError, match="'b' needs true or false") as caught:
        fit({"b": [True, False]}).transform({"b": variant})
    assert caught.value.details["row"] == 0


def test_a_boolean_that_was_never_true_is_idle():
    encoder = fit({"b": [False, None, False]})
    assert encoder.never_active().tolist() == [0]


# ---------------------------------------------------------------- categorical


def test_categories_are_one_hot_with_a_bucket():
    encoder = fit({"city": ["Oslo", "Rome", "Oslo", "Rome", "Pisa"]})
    encoded = encoder.transform({"city": ["Rome", "Pisa", "never", None, "Oslo"]})
    assert encoder.feature_names == ("city=Oslo", "city=Rome", "city=<other>")
    assert encoded.features.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 0]]
    assert encoded.unseen_counts == {"city": 2}
    assert encoded.null_counts == {"city": 1}
    assert encoder.never_active().size == 0


def test_nulls_are_a_category_where_training_has_them():
    encoder = fit({"city": ["a", "a", None]})
    encoded = encoder.transform({"city": ["a", None, math.nan, "b"]})
    assert encoder.feature_names == ("city=a", "city=<other>", "city is null")
    assert encoded.features.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0]]
    assert (encoded.unseen_counts, encoded.null_counts) == ({"city": 1}, {"city": 2})
    assert encoder.never_active().tolist() == [1]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.integers(1, 5))
def test_the_most_frequent_categories_are_kept_and_ties_go_by_name(values, most):
    ranked = sorted((-values.count(v), v) for v in set(values) if values.count(v) > 1)
    expected = sorted(v for _, v in ranked[:most])
    try:
        encoder = fit({"c": values}, max_categories=most)
    except DatasetError:
        assert not expected or len(set(values)) == 1 or len(set(values)) > 0.95 * len(values)
        return
    assert list(encoder.columns[0].categories) == expected
    assert len(encoder.warnings) == (len(ranked) > most)
    in_bucket = any(v not in expected for v in values)
    assert encoder.never_active().tolist() == ([] if in_bucket else [len(expected)])


@pytest.mark.parametrize("values", [[f"id{i}" for i in range(50)], [f"id{i}" for i in range(99)] + ["id0"]])
def test_text_that_names_rows_is_ignored(values):
    encoder = fit({"id": values, "x": np.arange(len(values))})
    assert [spec.name for spec in encoder.columns] == ["x"]
    assert "'id' is ignored: nearly every row has a value of its own" in encoder.warnings[0]


@pytest.mark.parametrize(
    ("category", "value"),
    [
        ("1", 1),
        ("1", 1.0),
        ("1.5", 1.5),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("-3", -3),
        ("2024-01-31", datetime.date(2024, 1, 31)),
    ],
)
def test_other_json_values_find_the_category_of_their_text(category, value):
    encoder = fit({"c": [category, category, "other", "other"]})
    index = encoder.columns[0].categories.index(category)
    for variant in ([value], pa.array([value])):
        encoded = encoder.transform({"c": variant})
        assert encoded.features[0, index] == 1
        assert encoded.unseen_counts == {}


def test_one_is_not_true_among_categories():
    encoder = fit({"c": ["1", "1", "true", "true"]})
    assert encoder.transform({"c": [1, True]}).features.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_differing_repeating_and_null_dictionary_entries_mean_what_they_say():
    parts = [
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None], pa.int8()), pa.array(["b", "a", None])),
        pa.DictionaryArray.from_arrays(pa.array([0, 2, 1], pa.int8()), pa.array(["a", "c", "a"])),
    ]
    plain = ["b", "a", None, None, "a", "a", "c"]
    column = pa.chunked_array(parts)
    encoder, expected = fit({"c": column}), fit({"c": plain})
    assert encoder.columns == expected.columns
    same(encoder.transform({"c": column}), expected.transform({"c": plain}))


def test_a_million_distinct_texts_are_encoded_without_a_category_each():
    count = 1_000_000
    values = pa.array(np.arange(count) // 2).cast(pa.string())
    encoder = fit({"c": pa.chunked_array([values])})
    assert len(encoder.columns[0].categories) == 64
    assert encoder.transform({"c": values}).unseen_counts == {"c": count - 128}


@pytest.mark.parametrize("value", [[], {}, [1]])
def test_lists_and_objects_are_no_categories(value):
    with pytest.raises(PredictionInputError, match="Row 1: column 'c' needs text"):
        fit({"c": ["a", "a", "b", "b"]}).transform({"c": ["a", value]})


# ---------------------------------------------------------------- dates


@given(st.lists(st.datetimes(datetime.datetime(1, 1, 1)), min_size=1))
def test_calendar_parts_are_those_of_datetime(stamps):
    seconds = np.array([calendar.seconds_of(s) for s in stamps])
    expected = [[s.year, s.month, s.day, s.weekday(), s.timetuple().tm_yday, s.hour] for s in stamps]
    assert calendar.calendar_parts(seconds).T.tolist() == expected


def test_dates_become_standardised_parts_and_nulls_one_indicator():
    days = [datetime.date(2024, 1, 1), datetime.date(2024, 3, 5), None, datetime.date(2024, 3, 9)]
    encoder = fit({"joined": days})
    assert encoder.feature_names == (
        *("joined.month", "joined.day", "joined.weekday", "joined.day_of_year"),  # one year, no time of day
        "joined is null",
    )
    found = features_of(encoder, joined=["2024-01-01", "2024-03-05", None])
    parts = SimpleImputer(strategy="median").fit_transform(
        [[1.0, 1, 0, 1], [3, 5, 1, 65], [np.nan] * 4, [3, 9, 5, 69]]
    )
    expected = StandardScaler().fit_transform(parts)[:3]
    np.testing.assert_allclose(np.array(list(found.values()))[:4].T, expected, rtol=1e-6, atol=1e-6)
    assert found["joined is null"] == [0, 0, 1]


@pytest.mark.parametrize(
    ("texts", "chosen", "more"),
    [
        (["2024-01-31", "2024-02-01T10:00:00Z"], "iso", "2023-05-06"),
        (["31/01/2024", "01/02/2024"], "%d/%m/%Y", "06/05/2023"),
        (["01/31/2024", "02/01/2024"], "%m/%d/%Y", "05/06/2023"),
        (["01/02/2024", "03/02/2024"], "%d/%m/%Y", "06/05/2023"),  # either would do: the earlier candidate
        (["31.01.2024 10:30", "1.2.2024 9:15"], "%d.%m.%Y", "06.05.2023"),
        (["2024/01/31", "2024/02/01"], "%Y/%m/%d", "2023/05/06"),
        (["31-01-2024", "01-02-2024"], "%d-%m-%Y", "06-05-2023"),
        (["01-31-2024", "02-01-2024"], "%m-%d-%Y", "05-06-2023"),
        (["Jan 31, 2024", "February 1, 2024"], "%b %d, %Y", "May 6, 2023"),
        (["31 Jan 2024", "1 February 2024"], "%d %b %Y", "6 May 2023"),
        (["31-Jan-2024", "1-FEB-2024"], "%d-%b-%Y", "06-may-2023"),
        (["2024-1-31", "2024-2-1 9:30 PM"], "%Y-%m-%d", "2023-5-6"),
        (["31/01/24", "01/02/24"], "%d/%m/%y", "06/05/23"),
    ],
)
def test_the_format_of_the_training_rows_reads_every_later_row(texts, chosen, more):
    encoder = fit({"d": texts}, date_columns=["d"])
    header, arrays = encoder.to_state()
    assert header["columns"][0]["date_format"] == chosen
    again = Encoder.from_state(header, arrays)
    assert calendar.text_parser(chosen)(more) == calendar.seconds_of(datetime.date(2023, 5, 6))
    assert again.transform({"d": [more]}).null_counts == {}
    same(again.transform({"d": texts}), again.transform({"d": pa.array(texts).dictionary_encode()}))


@pytest.mark.parametrize(
    ("date_format", "text", "iso"),
    [
        ("iso", " 2024-02-29 ", "2024-02-29T00:00:00"),
        ("iso", "20240229T1200", "2024-02-29T12:00:00"),
        ("iso", "2024-02-29T23:30:00.250-02:00", "2024-03-01T01:30:00"),
        ("%d/%m/%Y", "29/2/2024 12:05 AM", "2024-02-29T00:05:00"),
        ("%d/%m/%Y", "29/2/2024 12:05pm", "2024-02-29T12:05:00"),
        ("%d/%m/%Y", "29/2/2024, 23:59:58.75", "2024-02-29T23:59:58"),
        ("%d/%m/%Y", "29/2/2024 01:00 +05:30", "2024-02-28T19:30:00"),
        ("%d/%m/%Y", "29/2/2024 23:00-0200", "2024-03-01T01:00:00"),
        ("%Y-%m", "2024-02", "2024-02-01T00:00:00"),
        ("%d/%m/%y", "1/1/69", "1969-01-01T00:00:00"),
    ],
)
def test_times_and_zones_are_read_and_normalised_to_utc(date_format, text, iso):
    assert calendar.text_parser(date_format)(text) == calendar.seconds_of(
        datetime.datetime.fromisoformat(iso)
    )


@pytest.mark.parametrize(
    "text",
    [
        "30/2/2024",
        "1/13/2024",
        "1/1/2024 24:00",
        "1/1/2024 13:00 PM",
        "1/1/2024 0:00 AM",
        "1/1/2024 10:60",
        "x",
        "",
        "0/1/2024",
        "1/1/0000",
    ],
)
def test_days_and_hours_that_do_not_exist_are_null(text):
    assert calendar.text_parser("%d/%m/%Y")(text) == calendar.NULL


@pytest.mark.parametrize(
    "name", sorted(calendar.FORMATS - {"iso", "unix", "%b %d, %Y", "%d %b %Y", "%d-%b-%Y"})
)
@given(day=st.dates(datetime.date(1970, 1, 1), datetime.date(2068, 12, 31)))
def test_formats_agree_with_strptime(name, day):
    text = day.strftime(name)
    read = datetime.datetime.strptime(text, name)
    assert calendar.text_parser(name)(text) == calendar.seconds_of(read)


def test_text_that_is_no_date_is_null_and_told():
    encoder = fit({"d": ["2024-01-01", "2024-05-06", "soon", None]}, date_columns=["d"])
    assert encoder.warnings == ("Column 'd': 1 of 3 values are not dates (iso) and count as null.",)
    trained = encoder.transform({"d": ["soon", None, "2024-01-01"]}, strict_dates=False)
    assert trained.null_counts == {"d": 2}


@pytest.mark.parametrize(
    ("texts", "example"),
    [
        (["2024-01-01", "2024-05-06"], "2024-01-31"),
        (["13/02/2024", "14/03/2024"], "31/01/2024"),
        (["Jan 5, 2024", "Feb 6, 2024"], "Jan 31, 2024"),
        (["2024-01", "2024-05"], "2024-01"),
        ([1.7e9, 1.6e9], "1706659200"),
    ],
)
def test_malformed_dates_of_a_prediction_are_named_by_row_with_an_example(texts, example):
    encoder = fit({"d": texts}, date_columns=["d"])
    assert encoder.transform({"d": [example, None, math.nan]}).null_counts == {"d": 2}
    column = pa.chunked_array([[str(texts[0])], [None, "soon", "later"]])
    for variant in ([texts[0], None, "soon", "later"], column, column.dictionary_encode()):
        with pytest.raises(PredictionInputError) as caught:
            encoder.transform({"d": variant})
        assert (
            caught.value.message == f"Row 2: column 'd' needs a date like {example}, however text was given."
        )


@pytest.mark.parametrize("variant", [[1.7e9, None, 1e30], pa.array([1.7e9, None, 1e30])])
def test_number_that_is_no_moment_is_named_by_row(variant):
    encoder = fit({"d": [1.7e9, 1.6e9]}, date_columns=["d"])
    with pytest.raises(
        PredictionInputError, match=r"^Row 2: column 'd' needs a date like 1706659200, however"
    ):
        encoder.transform({"d": variant})
    assert encoder.transform({"d": variant}, strict_dates=False).null_counts == {"d": 2}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["2024-01-01", "soon", "later"], "1 of 3 are"),
        ([2015, 2016, 2017], "Unix seconds"),
        ([20240131, 20240201, 20240202], "Unix seconds"),
        ([1.7e12, 1.8e12, 1.9e12], "Unix seconds"),
        ([True, False, True], "booleans"),
    ],
)
def test_columns_that_hold_no_dates_are_refused_by_name(values, words):
    with pytest.raises(DatasetError, match=words) as caught:
        fit({"when": values}, date_columns=["when"])
    assert "'when'" in caught.value.message


def test_absent_date_columns_are_all_named_with_the_columns_there_are():
    with pytest.raises(DatasetError, match=r"'b', 'd' is none. The columns are: x, y") as caught:
        fit({"x": [1, 2], "y": [1, 2]}, date_columns=["d", "b", "x"])
    assert caught.value.details["missing"] == ["b", "d"]


def test_unix_seconds_are_dates_when_plausible():
    stamps = [datetime.datetime(2024, 1, 31, 5, tzinfo=UTC), datetime.datetime(2023, 6, 1, 7, tzinfo=UTC)]
    seconds = [int(s.timestamp()) for s in stamps]
    encoder, typed = fit({"d": seconds}, date_columns=["d"]), fit({"d": stamps})
    expected = typed.transform({"d": stamps}).features
    for variant in (seconds, [f"{s}" for s in seconds], [s + 0.9 for s in seconds], chunked(seconds), stamps):
        assert np.array_equal(encoder.transform({"d": variant}).features, expected)
    assert encoder.transform({"d": [None, "soon", 1e30]}, strict_dates=False).null_counts == {"d": 3}


@pytest.mark.parametrize("variant", [[12], [True], [["2024-01-01"]], pa.array([12])])
def test_a_number_is_no_date_in_a_column_of_text_dates(variant):
    encoder = fit({"d": ["2024-01-01", "2024-05-06"]}, date_columns=["d"])
    with pytest.raises(PredictionInputError, match="'d' needs a date as text"):
        encoder.transform({"d": variant})


def test_moments_of_any_resolution_and_zone_are_the_same_moment():
    stamps = [datetime.datetime(1969, 12, 31, 23, 59, 59), datetime.datetime(2024, 5, 6, 7, 8, 9)]
    encoder = fit({"d": stamps})
    expected = encoder.transform({"d": stamps})
    for unit in ("s", "ms", "us", "ns"):
        same(expected, encoder.transform({"d": pa.array(stamps, pa.timestamp(unit))}))
    oslo = pa.array([s.replace(tzinfo=UTC) for s in stamps], pa.timestamp("us", "Europe/Oslo"))
    same(expected, encoder.transform({"d": oslo}))
    dates = [s.date() for s in stamps]
    midnight = encoder.transform({"d": dates})
    for kind in (pa.date32(), pa.date64()):
        same(midnight, encoder.transform({"d": pa.array(dates, kind)}))


# ---------------------------------------------------------------- what the input must be


def test_all_missing_columns_are_named_at_once():
    encoder = fit({"a": [1, 2], "b": [1, 2], "c": [1, 2]})
    with pytest.raises(PredictionInputError, match="'a', 'c'") as caught:
        encoder.transform({"b": [1], "z": [1]})
    assert caught.value.details["missing"] == ["a", "c"]


@pytest.mark.parametrize(
    ("values", "row", "given_type"),
    [
        ([1, "secret"], 1, "text"),
        ([1, 2, [3]], 2, "list"),
        ([[1], [2], [3]], 0, "list"),
        ([{"a": 1}], 0, "object"),
        ([1, None, True, False], 2, "boolean"),
        (pa.chunked_array([[None] * 3, [False, True]], pa.bool_()), 3, "boolean"),
        ([None, ""], 1, "text"),
        (pa.array(["1", "secret", "2", "secret"]), 1, "text"),
        (pa.array([[1.0]]), 0, "list"),
        (pa.array([None, datetime.date(2024, 1, 1)]), 1, "date"),
        (pa.DictionaryArray.from_arrays(pa.array([2, 1]), pa.array(["unused", "secret", "1"])), 1, "text"),
    ],
)
def test_a_value_of_another_type_is_named_by_row_and_never_shown(values, row, given_type):
    encoder = fit({"x": [1.0, 2.0], "y": [1.0, 2.0]})
    with pytest.raises(PredictionInputError) as caught:
        encoder.transform({"x": values, "y": [1] * len(values)})
    assert caught.value.message == f"Row {row}: column 'x' needs a number, however {given_type} was given."
    assert caught.value.details == {"column": "x", "row": row, "given": given_type}


def test_columns_must_be_equally_long():
    with pytest.raises(PredictionInputError, match="'a' has 1 values and 'b' 2"):
        fit({"a": [1, 2], "b": [1, 2]}).transform({"a": [1], "b": [1, 2]})


def test_no_rows_encode_to_no_rows():
    encoder = fit(
        {"x": [1, 2], "c": ["a", "a"], "d": [datetime.date(2024, 1, 1), None]} | {"e": ["a", None]},
        rows=[0, 1],
    )
    for empty in (
        {name: [] for name in "xcde"},
        {name: pa.chunked_array([], pa.string()) for name in "xcde"},
    ):
        assert encoder.transform(empty).features.shape == (0, encoder.width)


def test_a_table_without_a_useful_column_is_refused_with_the_reasons():
    with pytest.raises(DatasetError, match="None of the 2") as caught:
        fit({"same": [1, 1], "id": ["a", "b"]})
    assert len(caught.value.details["reasons"]) == 2


def test_types_that_cannot_be_features_are_named():
    with pytest.raises(DatasetError, match=r"'x' has type list.*exclude it"):
        fit({"x": [[1], [2]]})


# ---------------------------------------------------------------- state


def state_of_every_kind():
    columns = {
        "x": [1.0, 2.0, None],
        "b": [True, False, None],
        "c": ["u", "u", None],
        "d": [datetime.date(2024, 1, 1), datetime.date(2024, 2, 2), None],
    }
    return fit(columns).to_state()


def broken_states():
    header, arrays = state_of_every_kind()
    column = header["columns"][0]
    yield {}, arrays
    yield header | {"columns": []}, arrays
    yield header | {"columns": "x"}, arrays
    yield header | {"columns": [3]}, arrays
    yield header | {"columns": header["columns"][1:]}, arrays
    yield header | {"columns": [column, *header["columns"]]}, arrays
    yield header | {"warnings": [1]}, arrays
    for i, spec in enumerate(header["columns"]):
        for field, wrong in {
            "name": 1,
            "kind": "colour",
            "categories": ["u", "u"] if spec["kind"] == "categorical" else ["u"],
            "date_format": ["iso"],
            "parts": ["month", "month", "century"],
            "has_nulls": 1,
            "idle": None,
        }.items():
            others = header["columns"][:i], header["columns"][i + 1 :]
            yield header | {"columns": [*others[0], spec | {field: wrong}, *others[1]]}, arrays
            lacking = {key: value for key, value in spec.items() if key != field}
            yield header | {"columns": [*others[0], lacking, *others[1]]}, arrays
    for name, array in arrays.items():
        yield header, {n: a for n, a in arrays.items() if n != name}
        for wrong in (array[:-1], array[:, None], array.astype(np.float32), np.full_like(array, np.nan)):
            yield header, arrays | {name: wrong}
    yield header, arrays | {"stds": np.zeros_like(arrays["stds"])}


@pytest.mark.parametrize(("header", "arrays"), [*broken_states()])
def test_a_state_that_does_not_fit_is_refused(header, arrays):
    with pytest.raises(BundleError, match="encoder cannot be used"):
        Encoder.from_state(header, arrays)


def test_encoding_imports_neither_torch_nor_ray():
    code = "import sys, core.encoding, core.target, core.splits, core.metrics; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "fastapi", "starlette", "sklearn", "pandas"} & set(done.stdout.split())
