"""``up`` and ``doctor``: the service itself, so they import it, and Ray, when they are called."""

from pathlib import Path

import click

from stillhouse.command_line.options import as_json
from stillhouse.command_line.output import EXIT_CODES, Output, show_json_error

CHECK_FAILED = 1

config_option = click.option(
    "--config", type=click.Path(path_type=Path), default="serve_config.yaml", show_default=True,
    help="The service's configuration.",
)  # fmt: skip


@click.command()
@config_option
@click.option("--address", help="Of a Ray cluster, as serve run takes it; local starts one for this service.")
@as_json
@click.pass_context
def up(context: click.Context, config: Path, address: str | None, as_json: bool) -> None:
    """Start the service and stay until Ctrl-C.

    A mistake in its configuration stops the start.
    """
    from deployments.configuration import ConfigFileError, read_configuration
    from deployments.foreground import StartError, run_in_foreground

    output = Output(as_json)
    try:
        configuration = read_configuration(config)
        output.tell(f"Stillhouse starts; its documentation will be at {configuration.url}/docs")
        run_in_foreground(configuration, address, output.tell)
    except ConfigFileError as error:
        problems = [str(problem) for problem in error.problems]
        _fail(
            context,
            output,
            "user_error",
            f"{config.name} must be correct before the service starts.",
            problems,
        )
    except StartError as error:
        _fail(context, output, "system_error", "The service does not run.", [str(error)])


@click.command()
@config_option
@as_json
@click.pass_context
def doctor(context: click.Context, config: Path, as_json: bool) -> None:
    """Check this machine, without starting anything."""
    from deployments.doctor import examine

    output, checks = Output(as_json), examine(config)
    columns = {
        "": lambda check: "ok" if check.holds else "FAILS",
        "check": lambda check: check.name,
        "found": lambda check: check.found,
        "what to do": lambda check: check.advice,
    }
    output.show_all(checks, columns)
    context.exit(0 if all(check.holds for check in checks) else CHECK_FAILED)


def _fail(context: click.Context, output: Output, error_type: str, message: str, problems: list[str]) -> None:
    if output.as_json:
        show_json_error({"type": error_type, "message": message, "problems": problems})
    else:
        click.echo("\n".join((f"Error: {message}", *(f"  {problem}" for problem in problems))), err=True)
    context.exit(EXIT_CODES[error_type])
