"""Options that commands share."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints, is_typeddict

import click
from click.core import ParameterSource

from stillhouse.client import DEFAULT_URL, Client
from stillhouse.command_line.output import Output

Command = Callable[..., Any]
INPUT: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
INPUT_OR_STDIN: Final = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
OUTPUT: Final = click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, also for errors.")


def connected(command: Command) -> Command:
    """Gives a command ``client`` and ``output``, from ``--url``, ``--token`` and ``--json``.

    The context's object makes the client.
    """

    @click.option("--url", envvar="STILLHOUSE_URL", show_envvar=True, default=DEFAULT_URL, show_default=True,
                  help="Where the service is.")  # fmt: skip
    @click.option("--token", envvar="STILLHOUSE_TOKEN", show_envvar=True, help="Bearer token.")
    @as_json
    @click.pass_context
    @functools.wraps(command)
    def with_client(
        context: click.Context, /, url: str, token: str | None, as_json: bool, **options: object
    ) -> None:
        output = Output(as_json)
        url, token = _given_first(context, "url") or url, _given_first(context, "token") or token
        connect: Callable[..., Client] = context.obj or Client
        try:
            client = connect(url, token, on_retry=output.tell_retry)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--url") from None
        with client:
            command(client, output, **options)

    return with_client


def _given_first(context: click.Context, name: str) -> str | None:
    """What stands before the command's name, unless the same option stands behind it."""
    if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
        return None
    given: str | None = context.find_root().params.get(name)
    return given


def fields_of(fields: type, leave_out: frozenset[str]) -> Callable[[Command], Command]:
    """An option for each field of a request, as ``stillhouse.fields`` describes it."""

    def decorate(command: Command) -> Command:
        for name, hint in reversed(get_type_hints(fields, include_extras=True).items()):
            if name not in leave_out:
                kind, explanation = get_args(hint)
                command = _option(name, kind, explanation)(command)
        return command

    return decorate


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the user gave."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value is not None and value != ()
    }


class JsonObject(click.ParamType[dict[str, Any]]):
    """A JSON object, written out."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return value
        try:
            read = json.loads(value)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            self.fail(f"must be a JSON object, got {value!r:.40}", param, ctx)
        return read


def _option(name: str, kind: Any, explanation: str) -> Callable[[Command], Command]:  # noqa: ANN401
    flag, shown = f"--{name.replace('_', '-')}", explanation[0].upper() + explanation[1:] + "."
    if kind is bool:
        return click.option(flag, name, is_flag=True, default=None, help=shown)
    if is_typeddict(kind):
        return click.option(flag, name, type=JsonObject(), help=f"{shown} As JSON.")
    if get_origin(kind) is list:
        return click.option(flag, name, multiple=True, help=f"{shown} May be given several times.")
    if get_origin(kind) is Literal:
        return click.option(flag, name, type=click.Choice(get_args(kind)), help=shown)
    return click.option(flag, name, type=kind, help=shown)
