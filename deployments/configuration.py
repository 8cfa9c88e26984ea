"""``serve_config.yaml``, checked before anything starts: Ray drops a misspelt key without a word.

The known keys are those of Ray's own models and of ``deployments.settings``; there is no list of ours.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

from deployments.settings import Settings

BUILDER: Final = "deployments.app:build"
_RUNTIME_ENV: Final = "runtime_env"  # the only free mapping whose keys Ray knows
_LONGEST_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration.

    Attributes:
        path: Where, as in ``applications[0].args.trainer.max_replica``; empty for the file itself.
        nearest: The known key that is most like a misspelt one.
    """

    path: str
    message: str
    nearest: str | None = None

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{where}{self.message}{f'; did you mean {self.nearest}?' if self.nearest else ''}"


class ConfigFileError(Exception):
    """A configuration that the service is not started with."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Configuration:
    """A checked file.

    Attributes:
        settings: Of our application; None where the file deploys others only.
    """

    path: Path
    deploy: ServeDeploySchema
    settings: Settings | None

    @property
    def url(self) -> str:
        """Where the service will answer on this machine."""
        http, host = self.deploy.http_options, self.deploy.http_options.host
        prefix = next((app.route_prefix for app in self.deploy.applications if _is_ours(app.import_path)), "")
        reachable = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104  # compared, not bound
        return f"http://{reachable}:{http.port}{http.root_path.rstrip('/')}{(prefix or '').rstrip('/')}"


def read_configuration(path: Path) -> Configuration:
    """Reads and checks a file.

    Raises:
        ConfigFileError: with everything that is wrong with it.
    """
    content = _read(path)
    if problems := tuple(problems_of(content)):
        raise ConfigFileError(problems)
    deploy = ServeDeploySchema.model_validate(content)
    ours = [app.args for app in deploy.applications if _is_ours(app.import_path)]
    return Configuration(path, deploy, Settings.model_validate(ours[0]) if ours else None)


def problems_of(content: object) -> list[Problem]:
    """Misspelt keys and values of a wrong type, of Ray's part and of the arguments of our application."""
    if not isinstance(content, Mapping):
        return [Problem("", f"the file must hold keys and values, got {_shown(content)}")]
    problems = [*_unknown_keys(content, ServeDeploySchema, ""), *_wrong_values(content)]
    applications = content.get("applications")
    for index, app in enumerate(applications if isinstance(applications, list) else ()):
        if isinstance(app, Mapping) and _is_ours(app.get("import_path")):
            problems += _problems_of_arguments(app.get("args", {}), f"applications[{index}].args")
    return problems


def _is_ours(import_path: object) -> bool:
    return isinstance(import_path, str) and import_path.replace(":", ".") == BUILDER.replace(":", ".")


def _read(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        problem = f"there is no file {path.name}: name one with --config"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path.name} must be a readable UTF-8 file: {type(error).__name__}"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = f"the file must be YAML{line}: {getattr(error, 'problem', None) or 'it cannot be read'}"
    raise ConfigFileError((Problem("", problem),))


def _problems_of_arguments(arguments: object, path: str) -> Iterator[Problem]:
    if isinstance(arguments, Mapping):
        yield from _unknown_keys(arguments, Settings, path)
    try:  # strict: a quoted number or a yes for a number is a mistake, whatever it could be turned into
        Settings.model_validate_json(json.dumps(arguments, default=str), strict=True)
    except ValidationError as error:
        yield from _problems_in(error, path)


def _wrong_values(
    content: object, model: type[BaseModel] = ServeDeploySchema, path: str = ""
) -> Iterator[Problem]:
    try:
        model.model_validate(content)
    except ValidationError as error:
        yield from _problems_in(error, path)
    except (ImportError, AttributeError) as error:  # Ray imports what some values name
        yield Problem(path, f"what it names must be importable: {error}")


def _problems_in(error: ValidationError, path: str) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        if item["type"] == "extra_forbidden":
            continue  # named with its nearest key already
        message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        where = _joined(path, *item["loc"])
        given = item["input"]
        shown = "" if isinstance(given, Mapping) or item["type"] == "missing" else f", got {_shown(given)}"
        yield Problem(where, f"{message[0].lower()}{message[1:]}{shown}")


def _unknown_keys(value: Mapping[Any, Any], model: type[BaseModel], path: str) -> Iterator[Problem]:
    known = model.model_fields
    for key, item in value.items():
        if key not in known:
            yield _unknown(key, known, path)
        elif key == _RUNTIME_ENV:
            yield from (
                _unknown(name, RuntimeEnv.known_fields, _joined(path, key)) for name in _strangers(item)
            )
        else:
            yield from _unknown_inside(item, known[key].annotation, _joined(path, key))


def _unknown_inside(value: object, annotation: object, path: str) -> Iterator[Problem]:
    nested = list(_models_in(annotation))
    if not nested:
        return
    for where, item in _mappings_in(value, path):
        yield from _unknown_keys(item, nested[0], where)
        if dict in _flattened(annotation):  # Ray takes any mapping here and looks at it much later
            yield from _wrong_values(item, nested[0], where)


def _mappings_in(value: object, path: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if isinstance(value, Mapping):
        yield path, value
    elif isinstance(value, list):
        yield from ((f"{path}[{i}]", item) for i, item in enumerate(value) if isinstance(item, Mapping))


def _strangers(runtime_env: object) -> Iterable[object]:
    return set(runtime_env) - RuntimeEnv.known_fields if isinstance(runtime_env, Mapping) else ()


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    yield from (
        part for part in _flattened(annotation) if isinstance(part, type) and issubclass(part, BaseModel)
    )


def _flattened(annotation: object) -> Iterator[object]:
    """The types that an annotation is made of; ``Dict`` and ``dict[…]`` as ``dict``."""
    yield getattr(annotation, "__origin__", annotation)
    for argument in get_args(annotation):
        yield from _flattened(argument)


def _unknown(key: object, known: Iterable[str], path: str) -> Problem:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
    return Problem(
        _joined(path, str(key)[:_LONGEST_SHOWN]), "there is no such key", near[0] if near else None
    )


def _joined(path: str, *steps: object) -> str:
    for step in steps:
        path = f"{path}[{step}]" if isinstance(step, int) else f"{path}.{step}".removeprefix(".")
    return path


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
