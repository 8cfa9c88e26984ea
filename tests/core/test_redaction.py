"""No secret, no server path and no row of data leaves the service (contract, section 2)."""

import json
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.catalogue import CATALOGUE
from core.redaction import REDACTED, redact, redact_text

SECRET = "Hunter2-" + "x7" * 8
KEYS = [
    *("password", "passwd", "passphrase", "pwd", "secret", "client_secret", "token", "callback_token"),
    *("api_key", "api-key", "apikey", "aws_access_key_id", "private_key", "authorization", "credentials"),
    *("cookie", "set-cookie", "sentry_dsn", "x-amz-signature", "aws_secret_access_key", "tokens"),
]


@st.composite
def in_any_case(draw, texts):
    return "".join(draw(st.sampled_from([c.lower(), c.upper()])) for c in draw(texts))


plain = st.none() | st.booleans() | st.integers() | st.text(string.ascii_lowercase + " ", max_size=12)
names = st.text(string.ascii_lowercase, min_size=1, max_size=8)


def nested(planted):
    """What is planted, somewhere in a structure of lists, tuples and objects."""
    return st.recursive(
        planted,
        lambda inner: st.one_of(
            st.tuples(st.lists(plain, max_size=2), inner).map(lambda pair: [*pair[0], pair[1]]),
            st.tuples(inner, plain),
            st.builds(
                lambda name, item, more: {**more, name: item}, names, inner, st.dictionaries(names, plain)
            ),
        ),
        max_leaves=6,
    )


def said(value):
    return json.dumps(redact(value), allow_nan=False)


@given(nested(st.builds(lambda key: {key: SECRET}, in_any_case(st.sampled_from(KEYS)))))
def test_value_of_a_secret_name_never_comes_out(value):
    assert SECRET not in said(value)
    assert REDACTED in said(value)


@given(in_any_case(st.sampled_from(KEYS)), nested(st.just(SECRET)))
def test_whole_structure_below_a_secret_name_is_hidden(key, value):
    assert redact({key: value}) == {key: REDACTED}


TEXTS = [
    "{key}={secret}",
    "{key}: {secret}",
    "{key} = '{secret}'",
    '{{"{key}": "{secret}"}}',
    r"{{\"{key}\": \"{secret}\"}}",
    "connect(host='x', {key}={secret!r}, port=1)",
    "GET /x?a=1&{key}={secret}&b=2",
    "{key}=Bearer {secret}",
    '"{key}": "Basic {secret}"',
]


@given(
    st.sampled_from(TEXTS),
    in_any_case(st.sampled_from(KEYS)),
    st.text(string.ascii_letters + string.digits + "-_.~+/=!$%*", min_size=8, max_size=40),
    nested(st.just("{}")),
)
def test_secret_in_a_text_never_comes_out(template, key, secret, place):
    text = template.format(key=key, secret=f"q{secret}")
    for value in (text, {"note": text}, [text], {text: 1}, ValueError(text)):
        assert secret not in said(value)


@pytest.mark.parametrize("secret", ["with space and 'quotes'", "a,b;c", "ends here"])
def test_secret_in_quotes_goes_whole(secret):
    assert redact_text(f'{{"password": "{secret}", "epochs": 3}}') == '{"password": [redacted], "epochs": 3}'


@given(in_any_case(st.sampled_from(["bearer", "basic"])), st.sampled_from([SECRET, "dXNlcjpwdw==", "q" * 20]))
def test_credentials_of_a_header_never_come_out(scheme, secret):
    for text in (f"{scheme} {secret}", f"sent {scheme}  {secret} to x", f"authorization: {scheme} {secret}"):
        assert secret not in redact_text(text)


@pytest.mark.parametrize(
    "url",
    ["https://me:{}@host/x", "redis://:{}@host:6379", "https://{}@host", "s3://a:b@{}@host", "amqp://u:{}@h"],
)
def test_credentials_in_addresses_never_come_out(url):
    assert SECRET not in redact_text(f"at {url.format(SECRET)} failed")


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "Set-Cookie: a=1; session=9f8e",
    ],
)
def test_secrets_that_are_known_by_their_shape_never_come_out(secret):
    assert secret.rpartition(" ")[2] not in redact_text(f"got {secret}")


segments = st.text(string.ascii_letters + string.digits + "._+-", min_size=1, max_size=10)


@given(
    st.lists(segments, min_size=2, max_size=5).filter(lambda s: s[0] not in ("api", "ws")),
    st.sampled_from(["{}", "cannot open {} (denied)", "'{}'", "path={}", "file://{}", "~{}", "at:{}"]),
    st.sampled_from(["/", "\\", "C:\\"]),
)
def test_server_paths_never_come_out(parts, sentence, style):
    separator = style[-1]
    path = style + separator.join(parts)
    text = redact_text(sentence.format(path))
    assert path not in text
    assert "<path>" in text


@pytest.mark.parametrize(
    "path", ["/docs/private/customers.csv", "/health/x", "/docs/errors/CUDA_OOM/x", "/api/v/x", "/api/v1x/y"]
)
def test_paths_that_only_begin_like_own_addresses_do_not_come_out(path):
    assert redact_text(f"cannot open {path}: denied") == "cannot open <path>: denied"


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("path", ["/srv/my data/x.csv", "C:\\my data\\x y.csv", "/srv/a b"])
def test_paths_with_blanks_go_whole_within_quotes(quote, path):
    assert redact_text(f"no {quote}{path}{quote} there") == f"no {quote}<path>{quote} there"


def test_server_paths_in_names_and_in_foreign_values_do_not_come_out():
    assert redact({"/srv/data/a.csv": OSError("/srv/data/b.csv")}) == {"<path>": "OSError('<path>')"}


@pytest.mark.parametrize("name", ["rows", "Row", "RECORDS", "data", "body", "payload", "values", "inputs"])
@pytest.mark.parametrize("value", [[[1, 2]], {"a": [1]}, ("x",), "a,b\n1,2", b"a,b"])
def test_rows_do_not_come_out(name, value):
    assert redact({"details": [{name: value}]}) == {"details": [{name: REDACTED}]}


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none())
def test_numbers_stay(number):
    assert redact({"rows": number, "deep": [{"epochs": number}]}) == {
        "rows": number,
        "deep": [{"epochs": number}],
    }


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_null(number):
    assert redact({"a": [number]}) == {"a": [None]}


OWN = [
    "/api/v1/limits",
    "/api/v1/datasets/csv-1/preview",
    "/docs/errors/CUDA_OOM",
    "/docs/errors",
    "/health/ready",
    "/ws/training-jobs/j-1",
    "/openapi.json",
]


@pytest.mark.parametrize("address", OWN)
@pytest.mark.parametrize("sentence", ["GET {} tells the limits.", "See {}.", "({})", "'{}'"])
def test_own_addresses_stay(sentence, address):
    text = sentence.format(address)
    assert redact_text(text) == text


ORDINARY = [
    "the bearer token is missing",
    "A valid bearer token must come in the Authorization header.",
    "Bearer tokens are compared in constant time.",
    "Send a bearer token. Basic authentication is not offered.",
    "Basic Authentication is not offered; bearer Tokens are.",
    "The password must hold 8 characters.",
    "Send Authorization: Bearer <token> with a valid token.",
    "Content-Type must be application/json, text/csv or text/event-stream.",
    "alpha and/or beta must be 0.5, got 1/2/3 on 2026/01/02.",
    "Secrets and cookies are not kept",
]


@pytest.mark.parametrize("sentence", ORDINARY)
def test_ordinary_sentences_are_not_mangled(sentence):
    assert redact_text(sentence) == sentence


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_what_the_catalogue_says_is_not_mangled(entry):
    assert redact_text(entry.message) == entry.message
    assert redact_text(entry.suggested_action) == entry.suggested_action


@given(nested(st.text()))
def test_redaction_is_done_at_once(value):
    once = redact(value)
    assert redact(once) == once


def test_endless_structures_end():
    endless = []
    endless.append({"again": endless})
    assert REDACTED in said(endless)


@pytest.mark.parametrize("part", ["password", "eyJ-", "bearer ", "a://", "/a", "token = ", "\\"])
def test_long_texts_are_searched_in_time(part):
    started = time.process_time()
    redact_text(part * 20_000)
    assert time.process_time() - started < 5  # quadratic patterns take minutes
