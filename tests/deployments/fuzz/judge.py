"""What every answer must be, whatever was asked: by the documentation, the catalogue and the dialects."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import jsonschema_rs

from core.catalogue import CATALOGUE
from core.errors import class_of
from core.exchange import JSON
from deployments.dialects import Asked, render
from deployments.routes.jobs import EVENT_STREAM
from tests.deployments.fuzz.exchange import CANARY, TOKEN, Answer, Sent
from tests.deployments.local import strict_json

LEAKS: Final = ("Traceback", "site-packages", 'File "', TOKEN)


class Judge:
    """Finds what is wrong with an answer.

    Args:
        secrets: Texts that no answer may hold.
    """

    def __init__(self, document: Mapping, secrets: Sequence[str]) -> None:
        self._secrets = [*LEAKS, *secrets]
        self._components = document["components"]
        self._validators: dict[str, jsonschema_rs.Validator] = {}
        self._routes = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operations)
            for path, operations in document["paths"].items()
        ]

    def faults(self, sent: Sent, answer: Answer) -> Iterator[str]:
        headers, text = answer.headers, answer.body.decode("utf-8", "replace")
        if not headers.get("x-request-id") or not re.fullmatch("[0-9a-f]{32}", headers.get("x-trace-id", "")):
            yield f"lacks ids: {headers}"
        if answer.status >= 500:
            yield f"is {answer.status}: {text[:300]}"
        for secret in self._secrets:
            if secret in text or secret in str(headers):
                yield f"shows {secret!r}"
        documented = self._documented(sent)
        if answer.status >= 400:
            yield from self._error_faults(sent, answer, documented)
        else:
            yield from _success_faults(answer, documented)

    def _documented(self, sent: Sent) -> Mapping | None:
        """The responses of the operation; None for what is no operation."""
        operations = next((found for route, found in self._routes if route.fullmatch(sent.path)), {})
        method = "GET" if sent.method == "HEAD" else sent.method
        known = {name.upper(): operation for name, operation in operations.items()}
        return known[method]["responses"] if method in known else None

    def _error_faults(self, sent: Sent, answer: Answer, documented: Mapping | None) -> Iterator[str]:
        code = answer.headers.get("x-error-code")
        if code not in CATALOGUE:
            yield f"has the code {code}, status {answer.status}, {answer.body[:200]}"
            return
        expected = render(class_of(code)(), Asked(sent.path, sent.header("accept")))
        if (answer.status, answer.media_type) != (expected.status, expected.media_type):
            yield f"is {answer.status} {answer.media_type}; {code} is {expected.status} {expected.media_type}"
        for name, value in expected.headers.items():
            if name in ("X-Error-Code", "X-Error-Type") and answer.headers.get(name.lower()) != value:
                yield f"has {name} {answer.headers.get(name.lower())}, not {value}"
        for name in ("Retry-After", "WWW-Authenticate", "Allow"):
            if (name in expected.headers) != (name.lower() in answer.headers):
                yield f"has the wrong headers for {code}: {answer.headers}"
        if not re.fullmatch("[1-9][0-9]*", answer.headers.get("retry-after", "1")):
            yield f"has Retry-After {answer.headers['retry-after']}"
        if sent.method != "HEAD":
            yield from self._body_faults(answer, expected, code, documented)

    def _body_faults(self, answer, expected, code, documented) -> Iterator[str]:
        try:
            body = strict_json(answer.body)
        except ValueError as error:
            yield f"is not JSON ({error}): {answer.body[:200]}"
            return
        if body.keys() - {"violations"} != expected.body.keys():
            yield f"has the members {[*body]}, not {[*expected.body]}"
        said = body.get("detail", body.get("error"))
        if isinstance(said, str) and CANARY in said:
            yield f"shows a row: {said}"
        if documented is None:
            return
        response = documented.get(str(answer.status), {})
        codes = response.get("headers", {}).get("X-Error-Code", {"schema": {"enum": []}})["schema"]["enum"]
        if code not in codes:
            yield f"is {answer.status} {code}, which is not documented"
        elif not self._validator(response["content"][answer.media_type]["schema"]).is_valid(body):
            yield f"does not fit its schema: {body}"

    def _validator(self, schema: Mapping) -> jsonschema_rs.Validator:
        key = json.dumps(schema)
        if key not in self._validators:
            whole = {**schema, "components": self._components}
            self._validators[key] = jsonschema_rs.validator_for(whole)
        return self._validators[key]


def _success_faults(answer: Answer, documented: Mapping | None) -> Iterator[str]:
    if "x-error-code" in answer.headers:
        yield f"is {answer.status} with an error code"
    if documented is None:  # the pages of the documentation
        return
    if str(answer.status) not in documented:
        yield f"is {answer.status}, which is not documented"
        return
    content = documented[str(answer.status)].get("content", {"": {}})
    if answer.media_type not in content or bool(answer.body) != bool(answer.media_type):
        yield f"is {answer.media_type}, which is not documented"
    parts = [answer.body] if answer.media_type == JSON else []
    if answer.media_type == EVENT_STREAM:
        parts = re.findall(rb"^data: (.*)$", answer.body, re.MULTILINE)
    for part in parts:
        try:
            strict_json(part)
        except ValueError as error:
            yield f"is not JSON ({error}): {part[:200]}"
