"""Hostile requests: made from the documentation by schemathesis, and from valid ones by mutation."""

import dataclasses
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import quote, unquote, urlencode

import openpyxl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from requests import Request

from core.exchange import ARROW, CSV, JSON, PARQUET, TABLES, write_arrow
from deployments.dialects import PROBLEM
from deployments.routes.jobs import EVENT_STREAM
from tests.deployments.fuzz.exchange import FILE, MODEL, RUN, TABLE, TOKEN, Sent, authorized, posted
from tests.deployments.fuzz.service import Target
from tests.deployments.local import DATASETS, DISTILL, PREDICT, QUICK, QUICK_STUDENT, RUNS, TRAIN

COSTLY: Final = {
    "epochs": 3,
    "ensemble_size": 4,
    "hidden_dim": 16,
    "student_hidden_dim": 16,
    "num_hidden_layers": 2,
    "student_num_hidden_layers": 2,
}
UNDOCUMENTED_PAGES: Final = ("/docs", "/openapi.json", "/static-offline-docs")

# ── Requests from the documentation ─────────────────────────────────────────────────────────────────────────


def documented_requests(target: Target, examples: int, seeded: int) -> list[Sent]:
    """For each operation ``examples`` requests that fit its schema, and as many that do not."""
    schema = schemathesis.openapi.from_dict(target.document)
    cases = [
        case
        for operation in schema.get_all_operations()
        for mode in schemathesis.GenerationMode
        for case in drawn(operation.ok().as_strategy(generation_mode=mode), examples, seeded)
    ]
    return [_sent_of(case, index, target) for index, case in enumerate(cases)]


def _sent_of(case: schemathesis.Case, index: int, target: Target) -> Sent:
    """The case as it is sent; most carry the right token, and the names of what exists."""
    if index % 2 and isinstance(case.body, dict):
        live = {"dataset_id": target.dataset, "target_column": "kind", "teacher_run_id": RUN, "run_id": RUN}
        case.body |= {name: value for name, value in live.items() if name in case.body}
    if isinstance(case.body, dict):
        case.body |= {name: _tamed(case.body[name], cap) for name, cap in COSTLY.items() if name in case.body}
    if index % 3 == 0:
        case.path_parameters |= {
            name: value
            for name, value in {"run_id": RUN, "model_id": MODEL, "dataset_id": target.dataset}.items()
            if name in case.path_parameters
        }
    prepared = Request(**case.as_transport_kwargs(base_url="http://stillhouse")).prepare()
    path, _, query = prepared.url.removeprefix("http://stillhouse").partition("?")
    headers = {
        name.lower(): str(value).encode("latin-1", "replace") for name, value in prepared.headers.items()
    }
    if index % 10:
        headers["authorization"] = f"Bearer {TOKEN}".encode()
    body = prepared.body or b""
    return Sent(
        prepared.method,
        unquote(path),
        query.encode(),
        tuple((name.encode("latin-1"), value) for name, value in headers.items()),
        body.encode() if isinstance(body, str) else bytes(body),
    )


def _tamed(value: object, cap: int) -> object:
    """A number of moderate cost; what is none stays."""
    return min(value, cap) if isinstance(value, int | float) and value > cap and value < 1e5 else value


def drawn(strategy: st.SearchStrategy, count: int, seeded: int) -> list:
    """At most ``count`` examples, the same for the same seed."""
    examples = []

    @seed(seeded)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(example):
        examples.append(example)

    keep()
    return examples[:count]


# ── Requests of our own ─────────────────────────────────────────────────────────────────────────────────────

VALID: Final = (
    "null", "true", "false", "0", "-0", "-1", "1", "2", "3", "0.5", "1.5", "12.0", "1e308", "-1e308",
    "5e-324", "9223372036854775808",
    "1" * 400, '""', '" "', '"\\u0000"', '"a\\nb\\rc\\t"', '"💥"', '"\\u202e"',
    '"' + "x" * 10_000 + '"', '"../../etc/passwd"', '"/etc/passwd"', '"NaN"', '"inf"', '"1e400"', '" 3 "',
    '"٣"', '"1_0"', '"0x10"', "[]", "{}", "[[]]", "[null]", '{"a": null}', '[1, "a", {}]',
    "[" * 60 + "]" * 60,
    '{"a":' * 60 + "1" + "}" * 60, '["kind"]', '["width", "width"]', '"kind"', '"width"', '"colour"',
    '"length,,kind"', '"cuda"', '"cuda:999"', '"cpu"', '"TABRESNET"', '"linear-glm baseline"', '"regression"',
    '"calibrated_classifier"', '"imbalance_aware"', '"tree_teacher_distillation"', '"classification"',
    '"true"', f'"{RUN}"', f'"{MODEL}"', f'"models/{MODEL}/bundle.safetensors"', f'"{FILE}"',
)  # fmt: skip
INVALID: Final = (
    "NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, "01", "1.", "undefined", '"\\ud800"', "[" * 100_000,
    "'single'", "/* */ 1", '"\x01"', '"',
)  # fmt: skip
VALUES: Final = st.one_of(*[st.sampled_from(VALID)] * 15, st.sampled_from(INVALID)).map(str.encode)
TEXTS: Final = st.one_of(
    st.sampled_from(
        ["", " ", ".", "..", "../x", "a/b", "\0", "%00", "💥", "x" * 300, "x\r\ny", "'--", "{x}"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
HEADERS: Final = {
    "accept": (
        JSON, PROBLEM, f"text/html, {PROBLEM};q=0.1", CSV, PARQUET, ARROW, EVENT_STREAM, "*/*",
        "application/*",        "", ";;,", "image/png", f"{CSV};q=0, {JSON}", "\xff\xfe",
    ),
    "content-type": (
        JSON, *TABLES, "multipart/form-data", 'multipart/form-data; boundary=""', "text/plain", "", "/",
        "\xe9",        "multipart/form-data; boundary=" + "b" * 300, "application/json; charset=utf-7",
        "application/x-www-form-urlencoded",
    ),
    "content-length": ("0", "-1", "1e3", "99999999999999", "9" * 30, "nine", "\xb2"),
    "content-encoding": ("gzip", "deflate", "identity", "br", "gzip, gzip", "", "\xe9"),
    "authorization": ("", "Bearer", "Bearer x", f"bearer {TOKEN}x", "Basic eDp5", f"Bearer {TOKEN},", "\xff"),
    "idempotency-key": ("key-1", "key-2", "", " ", "k" * 300, "\xe9"),
    "x-request-id": ("id-1", "", "a b", "x" * 200, "\xe9", "${jndi:x}"),
    "traceparent": (f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'0' * 32}-{'0' * 16}-00", "ff-x", "\xe9"),
    "x-forwarded-for": ("1.2.3.4", "::1, x", "," * 50, "\xff"),
    "range": ("bytes=0-1", "bytes=9-1", "bytes=-0", "rows=1"),
    "if-none-match": ("*", '"x"', "\xff"),
    "if-modified-since": ("Thu, 01 Jan 1970 00:00:00 GMT", "yesterday"),
    "host": ("", "a b", "x:y:z", "[::1", "evil.example"),
    "origin": ("https://evil.example", "null"),
    "expect": ("100-continue", "the unexpected"),
    "upgrade": ("websocket", "h2c"),
    "cookie": ("a=b; c", "=", "\xff"),
    "x-request-timeout-seconds": ("0", "-1", "x"),
    "x-filler": ("f" * 70_000,),
}  # fmt: skip
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW", "get")


def hostile_requests(target: Target) -> st.SearchStrategy[Sent]:
    """Valid requests with something wrong about them, or nothing."""
    tables = _tables()
    return st.one_of(
        *[_jobs(target)] * 3,
        _predictions(),
        _saves(),
        _uploads(tables),
        _predicted_tables(tables),
        _visits(target),
    ).flatmap(_disturbed)


def _jobs(target: Target) -> st.SearchStrategy[Sent]:
    train = QUICK | {"dataset_id": target.dataset, "epochs": 1}
    distill = QUICK_STUDENT | {"dataset_id": target.dataset, "epochs": 1, "teacher_run_id": RUN}
    names = {
        path: [
            *target.document["paths"][path]["post"]["requestBody"]["content"][JSON]["schema"]["properties"]
        ]
        for path in (TRAIN, DISTILL)
    }
    bodies = {TRAIN: train, DISTILL: distill}
    return st.sampled_from([TRAIN, DISTILL]).flatmap(
        lambda path: _objects(bodies[path], names[path]).map(lambda body: posted(path, body))
    )


def _predictions() -> st.SearchStrategy[Sent]:
    row = {"length": 1.5, "width": 0.4, "colour": "red"}
    rows = st.lists(_objects(row, [*row]), min_size=1, max_size=3).map(lambda r: b"[" + b", ".join(r) + b"]")
    lists = st.lists(VALUES, max_size=3).map(lambda v: b"[" + b", ".join(v) + b"]")
    columns = st.fixed_dictionaries(dict.fromkeys(row, lists)).map(_object)
    ids = st.sampled_from([("run_id", RUN), ("model_id", MODEL), ("model_id", "absent")])
    known = st.tuples(ids, rows | columns).map(
        lambda drawn: (
            b'{"%s": "%s", "%s": %s}'
            % (
                drawn[0][0].encode(),
                drawn[0][1].encode(),
                b"rows" if drawn[1].startswith(b"[") else b"columns",
                drawn[1],
            )
        )
    )
    any_body = _objects({"run_id": RUN, "rows": [row]}, ["run_id", "model_id", "rows", "columns"])
    return (known | any_body).map(lambda body: posted(PREDICT, body))


def _saves() -> st.SearchStrategy[Sent]:
    bodies = _objects({"model_id": "saved", "overwrite": True}, ["model_id", "overwrite"])
    return bodies.map(lambda body: posted(f"{RUNS}/{RUN}/save", body))


def _objects(valid: Mapping[str, object], names: Sequence[str]) -> st.SearchStrategy[bytes]:
    """The JSON object with up to three members replaced, added or sent twice; or what is no object."""
    plain = {name.encode(): json.dumps(value).encode() for name, value in valid.items()}
    changes = st.lists(
        st.tuples(
            st.sampled_from([*(name.encode() for name in names), b"epoch", b"extra", b"\\u0000"]),
            VALUES,
            st.booleans(),
        ),
        max_size=3,
    )

    def changed(drawn: list[tuple[bytes, bytes, bool]]) -> bytes:
        replaced = plain | {name: value for name, value, twice in drawn if not twice}
        return _object(replaced, [(name, value) for name, value, twice in drawn if twice])

    return st.one_of(*[changes.map(changed)] * 8, VALUES, st.binary(max_size=40))


def _object(members: Mapping, more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    pairs = [(k.encode() if isinstance(k, str) else k, v) for k, v in (*members.items(), *more)]
    return b"{" + b", ".join(b'"' + name + b'": ' + value for name, value in pairs) + b"}"


def _tables() -> dict[str, bytes]:
    """The same small table in every format, by media type."""
    table = pa.csv.read_csv(pa.py_buffer(TABLE.encode()))
    parquet, sheet = io.BytesIO(), io.BytesIO()
    pa.parquet.write_table(table, parquet)
    book = openpyxl.Workbook()
    for row in [table.column_names, *(list(row.values()) for row in table.to_pylist()[:8])]:
        book.active.append(row)
    book.save(sheet)
    return {
        CSV: TABLE.encode(),
        "text/tab-separated-values": TABLE.replace(",", "\t").encode(),
        PARQUET: parquet.getvalue(),
        ARROW: write_arrow(table),
        "application/x-ndjson": b"\n".join(json.dumps(row).encode() for row in table.to_pylist()[:8]),
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": sheet.getvalue(),
    }


def _damaged(file: bytes) -> st.SearchStrategy[bytes]:
    """A file cut off, with bytes changed, with more behind it, or something else."""
    places = st.integers(0, len(file) - 1)
    return st.one_of(
        st.just(file),
        places.map(lambda end: file[:end]),
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4).map(
            lambda changes: _with_bytes(file, changes)
        ),
        st.tuples(places, VALUES).map(lambda drawn: file[: drawn[0]] + drawn[1] + file[drawn[0] :]),
        st.binary(max_size=200),
        st.binary(max_size=20).map(lambda more: file + more),
        st.just(file + file),
        st.just(b"\xff\xfe" + file),
        st.just(b"\xef\xbb\xbf" + file),
    )


def _with_bytes(file: bytes, changes: Sequence[tuple[int, int]]) -> bytes:
    changed = bytearray(file)
    for place, value in changes:
        changed[place] = value
    return bytes(changed)


def _uploads(tables: Mapping[str, bytes]) -> st.SearchStrategy[Sent]:
    names = st.none() | st.sampled_from(["x.csv", "x.xlsx", "x", "x.exe", "x.parquet", "../x.csv"]) | TEXTS
    forms = st.booleans()

    def upload(drawn: tuple[str, bytes, str | None, bool]) -> Sent:
        media_type, file, name, as_form = drawn
        if as_form:
            disposition = f'form-data; name="file"; filename="{name}"'.encode("utf-8", "replace")
            head = b"--edge\r\nContent-Disposition: " + disposition + b"\r\nContent-Type: "
            file = head + media_type.encode() + b"\r\n\r\n" + file + b"\r\n--edge--\r\n"
            return posted(DATASETS, file, "multipart/form-data; boundary=edge")
        return posted(DATASETS, file, media_type, urlencode({} if name is None else {"name": name}).encode())

    return st.sampled_from([*tables]).flatmap(
        lambda media_type: st.tuples(
            st.sampled_from([media_type, media_type, *tables]), _damaged(tables[media_type]), names, forms
        ).map(upload)
    )


def _predicted_tables(tables: Mapping[str, bytes]) -> st.SearchStrategy[Sent]:
    return st.sampled_from([*TABLES]).flatmap(
        lambda media_type: _damaged(tables[media_type]).map(
            lambda file: posted(PREDICT, file, media_type, f"run_id={RUN}".encode())
        )
    )


def _visits(target: Target) -> st.SearchStrategy[Sent]:
    """Any method to any address, with parts and parameters that exist or not."""
    live = {"run_id": RUN, "model_id": MODEL, "dataset_id": target.dataset, "name": "trainer"}
    paths = [*target.document["paths"], *UNDOCUMENTED_PAGES, "/docs/errors/RUN_NOT_FOUND", "/docs/errors/{x}"]
    addresses = st.tuples(st.sampled_from(paths), TEXTS, st.integers(0, 2)).map(
        lambda drawn: re.sub(
            r"\{(\w+)\}",
            lambda part: live.get(part[1], "x") if drawn[2] else drawn[1],
            drawn[0],
        )
    )
    wild = TEXTS.map(lambda text: f"/{text}") | TEXTS.map(lambda text: f"/api/v1/{text}")
    queries = st.dictionaries(
        st.sampled_from(["limit", "cursor", "rows", "format", "name", "run_id"]) | TEXTS,
        st.sampled_from(
            ["1", "0", "-1", "101", "1e3", "NaN", "9" * 30, "onnx", "torchscript", RUN, "WyJhIl0"]
        )
        | TEXTS,
        max_size=2,
    ).map(lambda query: urlencode(query, errors="replace").encode())
    return st.tuples(
        st.sampled_from(["GET", "GET", "GET", *METHODS]),
        st.one_of(addresses, addresses, addresses, addresses.map(lambda path: f"{path}/"), wild),
        queries | st.binary(max_size=10).map(lambda raw: quote(raw).encode()),
    ).map(lambda drawn: Sent(drawn[0], drawn[1], drawn[2], authorized()))


def _disturbed(sent: Sent) -> st.SearchStrategy[Sent]:
    """The request with up to two headers changed or doubled; half of them as they are."""
    pairs = [(name.encode(), value.encode("latin-1")) for name, all_ in HEADERS.items() for value in all_]
    accepts = [pair for pair in pairs if pair[0] == b"accept"]

    def disturb(drawn: tuple[list[tuple[bytes, bytes]], bool]) -> Sent:
        changes, doubled = drawn
        names = () if doubled else {name for name, _ in changes}
        kept = tuple(pair for pair in sent.headers if pair[0] not in names)
        return dataclasses.replace(sent, headers=(*kept, *changes))

    def deflated(compress: Callable[[bytes], bytes], encoding: bytes) -> Sent:
        headers = (*sent.headers, (b"content-encoding", encoding))
        return dataclasses.replace(sent, body=compress(sent.body), headers=headers)

    one = st.sampled_from(pairs) | st.sampled_from(accepts)
    many = st.lists(one, max_size=2)
    return st.one_of(
        st.just(sent),
        st.tuples(many, st.integers(0, 9).map(lambda n: n == 0)).map(disturb),
        st.sampled_from([(gzip.compress, b"gzip"), (zlib.compress, b"deflate")]).map(
            lambda how: deflated(*how)
        ),
    )
