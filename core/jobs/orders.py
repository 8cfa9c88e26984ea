"""What a client may ask of a job: parsed once, at the door, with everything that is wrong at once."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from core.contract.fields import NumberField, parse_text, shown
from core.contract.validation import DISTILL_FIELDS, TRAIN_FIELDS
from core.contract.violations import violations
from core.errors import HiddenConfigError, ParameterError, RequestError, StillhouseError, ValidationError
from core.jobs.records import Executor, JobKind

Payload = Mapping[str, object]

PRIORITY: Final = NumberField("priority", "integer", -10, 10, 0)
TIME_LIMIT: Final = NumberField("time_limit_s", "number", 0, 7 * 86_400, None, open_low=True)
NUMBERS: Final = {field.name: field for field in (PRIORITY, TIME_LIMIT)}
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "kind": ("train", "distill"),
    "executor": ("ray", "external"),
    "on_oom": ("fail", "reduce_batch"),
}
FRAMEWORKS: Final = ("pytorch",)
TASKS: Final = ("auto", "classification", "regression")
TEXTS: Final = ("project_id", "experiment_name", "notes", "callback_url")
OPTION_FIELDS: Final = frozenset({*NUMBERS, *CHOICES, *TEXTS, "tags", "framework", "strict"})
RETRY_FIELDS: Final = frozenset({"resume_from", "new_snapshot"})
_MOST_TAGS: Final = 50
_MOST_CHARS: Final = {"project_id": 128, "experiment_name": 256, "notes": 10_000, "callback_url": 2048}
_TAG: Final = re.compile(r"[^\s\x00-\x1f]{1,64}")


@dataclass(frozen=True, slots=True)
class Order:
    """A job as a client asks for it.

    Attributes:
        payload: The train or distil request alone.
        options: See ``OPTION_FIELDS``.
        warnings: Of fields that are ignored.
    """

    kind: JobKind
    executor: Executor
    payload: Payload
    options: Mapping[str, object]
    priority: int
    project_id: str | None
    epochs: int | None
    strict: bool
    warnings: tuple[str, ...]


def parse_order(body: Payload, kind: JobKind | None = None) -> Order:
    """Args:
        kind: Decides where the body does not say.

    Raises:
        ValidationError: with every violation, if a field is wrong.
        ConfigurationError: INVALID_MODEL or INVALID_CONFIG, if the fields are right one by one and yet
            cannot be carried out.
    """
    options, wrong = _options(body)
    chosen = cast("JobKind", options.pop("kind", None) or kind or "train")
    payload = {name: value for name, value in body.items() if name not in OPTION_FIELDS}
    if "dataset_path" in payload:  # an older name
        payload.setdefault("data_path", payload.pop("dataset_path"))
    found = violations(chosen, payload)
    impossible = [error for error in found if not isinstance(error, RequestError)]
    impossible += _unknown_choices(body)
    wrong += [error for error in found if isinstance(error, RequestError)]
    if wrong:
        raise validation_error(wrong)
    if impossible:
        raise impossible[0]
    known = TRAIN_FIELDS if chosen == "train" else DISTILL_FIELDS
    ignored = sorted(name for name in payload if name not in known)
    epochs = payload.get("epochs")
    return Order(
        kind=chosen,
        executor=cast("Executor", options.pop("executor", None) or "ray"),
        payload={name: value for name, value in payload.items() if name in known},
        priority=cast("int", options.pop("priority", 0)),
        project_id=cast("str | None", options.pop("project_id", None)),
        strict=bool(options.pop("strict", False)),
        epochs=int(epochs) if isinstance(epochs, int | float | str) else None,
        options=options,
        warnings=tuple(f"unknown field {shown(name)} is ignored" for name in ignored[:20]),
    )


def validation_error(wrong: Iterable[StillhouseError]) -> ValidationError:
    """One error for all violations, in their order."""
    found = [
        {"param": error.details.get("field"), "code": error.code, "message": error.message} for error in wrong
    ]
    first = found[0]
    more = f" ({len(found) - 1} more fields are wrong too)" if len(found) > 1 else ""
    return ValidationError(f"{first['message']}{more}", field=first["param"], violations=found)


def _options(body: Payload) -> tuple[dict[str, Any], list[StillhouseError]]:
    """What concerns the job and was given, and what is wrong with it."""
    options: dict[str, Any] = {}
    wrong: list[StillhouseError] = []
    parsers: dict[str, Callable[[Payload], object]] = {
        **{name: _number(field) for name, field in NUMBERS.items()},
        **{name: _choice(name, allowed) for name, allowed in CHOICES.items()},
        **{name: _text(name) for name in TEXTS},
        "callback_url": _callback_url,
        "tags": _tags,
        "strict": _flag,
    }
    for name, parse in parsers.items():
        if body.get(name) is None:
            continue
        try:
            options[name] = parse(body)
        except RequestError as error:
            wrong.append(error)
    return options, wrong


def _number(field: NumberField) -> Callable[[Payload], object]:
    def parse(body: Payload) -> object:
        number = field.parse(body)
        field.check(number)
        return number

    return parse


def _choice(name: str, allowed: tuple[str, ...]) -> Callable[[Payload], object]:
    def parse(body: Payload) -> object:
        if body[name] not in allowed:
            raise ParameterError(
                f"{name} must be {' or '.join(allowed)}, got {shown(body[name])}", field=name
            )
        return body[name]

    return parse


def _text(name: str) -> Callable[[Payload], str | None]:
    def parse(body: Payload) -> str | None:
        text = parse_text(body, name)
        if text is not None and len(text) > _MOST_CHARS[name]:
            raise ParameterError(
                f"{name} must have at most {_MOST_CHARS[name]} characters, got {len(text)}", field=name
            )
        return text

    return parse


def _callback_url(body: Payload) -> str | None:
    url = _text("callback_url")(body)
    try:
        parts = urlsplit(url or "")
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.username
        good = good and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ParameterError(
            "callback_url must be an http or https address without credentials", field="callback_url"
        )
    return url


def _tags(body: Payload) -> list[str]:
    tags = body["tags"]
    fits = isinstance(tags, list) and len(tags) <= _MOST_TAGS
    if not fits or not all(
        isinstance(tag, str) and _TAG.fullmatch(tag) for tag in cast("list[object]", tags)
    ):
        raise ParameterError(
            f"tags must be at most {_MOST_TAGS} texts of up to 64 characters without blanks", field="tags"
        )
    return cast("list[str]", tags)


def _flag(body: Payload) -> bool:
    if not isinstance(body["strict"], bool):
        raise ParameterError(f"strict must be true or false, got {shown(body['strict'])}", field="strict")
    return body["strict"]


def _unknown_choices(body: Payload) -> list[StillhouseError]:
    """A framework or a task that nobody has is a configuration that cannot be (jobs.md, row 8)."""
    choices: tuple[tuple[str, tuple[str, ...]], ...] = (("framework", FRAMEWORKS), ("task", TASKS))
    return [
        HiddenConfigError(f"{name} must be {' or '.join(allowed)}, got {shown(body[name])}", field=name)
        for name, allowed in choices
        if body.get(name) is not None and body[name] not in allowed
    ]


@dataclass(frozen=True, slots=True)
class RetryOrder:
    """How a job is to be run again.

    Attributes:
        changes: Fields of the request that differ.
        resume_from: ``none``, ``best``, ``last`` or the id of a checkpoint.
    """

    changes: Payload
    resume_from: str
    new_snapshot: bool


def parse_retry(body: Payload) -> RetryOrder:
    """Raises ValidationError."""
    resume, fresh = body.get("resume_from", "none"), body.get("new_snapshot", False)
    wrong: list[StillhouseError] = []
    if not isinstance(resume, str) or not re.fullmatch(r"[\w.-]{1,64}", resume):
        wrong.append(
            ParameterError(
                f"resume_from must be none, best, last or a checkpoint_id, got {shown(resume)}",
                field="resume_from",
            )
        )
    if not isinstance(fresh, bool):
        wrong.append(
            ParameterError(f"new_snapshot must be true or false, got {shown(fresh)}", field="new_snapshot")
        )
    if wrong:
        raise validation_error(wrong)
    changes = {name: value for name, value in body.items() if name not in RETRY_FIELDS}
    return RetryOrder(changes, cast("str", resume), cast("bool", fresh))
