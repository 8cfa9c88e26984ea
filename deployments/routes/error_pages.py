"""The documentation of each error code, written from the catalogue."""

import json
from html import escape
from typing import Final

from core.catalogue import CATALOGUE, Entry, RetryMode
from core.errors import class_of
from deployments.dialects import Asked, documentation_of, render

_RETRIES: Final = {
    RetryMode.NONE: "Trying again does not help.",
    RetryMode.AUTO: "Send the same request again after the time in Retry-After; clients do so by themselves.",
    RetryMode.AFTER_DELAY: "Send the same request again after the time in Retry-After.",
    RetryMode.AFTER_CHANGE: "Send it again once it is changed; as it is it will fail again.",
}
_DIALECTS: Final = (
    ("Train and distil", "/api/v1/train", None),
    ("Training jobs", "/api/v1/training-jobs", None),
    ("Every other route", "/api/v1/datasets", None),
    ("With Accept: application/problem+json", "/api/v1/datasets", "application/problem+json"),
)
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
    "td,th{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}"
    "pre{background:#f4f4f4;padding:.8em;overflow:auto}"
)


def index_page() -> str:
    rows = "".join(
        f'<tr><td><a href="{documentation_of(entry.code)}">{entry.code}</a></td><td>{entry.status}</td>'
        f"<td>{entry.type}</td><td>{escape(entry.message)}</td></tr>"
        for entry in CATALOGUE.values()
    )
    head = "<tr><th>code</th><th>status</th><th>type</th><th>message</th></tr>"
    return _page("Errors", f"<table>{head}{rows}</table>")


def page_of_code(entry: Entry) -> str:
    facts = {
        "HTTP status": str(entry.status),
        "type": entry.type.value,
        "severity": entry.severity.value,
        "retry": _RETRIES[entry.retry],
        "what to do": entry.suggested_action,
    }
    rows = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in facts.items())
    examples = "".join(_example(entry, *dialect) for dialect in _DIALECTS)
    body = f"<p>{escape(entry.message)}</p><table>{rows}</table><h2>How it looks</h2>{examples}"
    return _page(entry.code, body + '<p><a href="/docs/errors">All errors</a></p>')


def _example(entry: Entry, title: str, path: str, accept: str | None) -> str:
    rendered = render(class_of(entry.code)(), Asked(path, accept, "7c1f…", "4bf92f35…"))
    headers = "\n".join(f"{name}: {value}" for name, value in rendered.headers.items())
    body = json.dumps(rendered.body, indent=2, ensure_ascii=False)
    return f"<h3>{title}</h3><pre>{rendered.status}\n{escape(headers)}\n\n{escape(body)}</pre>"


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{body}</body></html>"
    )
