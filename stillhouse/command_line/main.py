"""The command and how its errors are shown."""

import sys
from typing import Any

import click

from core.errors import StillhouseError
from stillhouse.command_line.jobs import distill, predict, train
from stillhouse.command_line.output import INTERRUPTED, USAGE_ERROR, show_error, show_json_error
from stillhouse.command_line.resources import datasets, errors, models, runs
from stillhouse.command_line.serving import doctor, up
from stillhouse.command_line.training_jobs import jobs

EXIT_CODES_HELP = """\b
Exit codes:
  0    all went well
  1    doctor: a check does not hold
  2    the command is not written correctly
  3    user_error: the request or the data must change
  4    permanent: as asked, it will never work
  5    transient: try again later
  6    system_error: tell the operator
  130  interrupted"""


class CommandLine(click.Group):
    """Shows every error in one place, as text on stderr or, with ``--json``, as JSON on stdout."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  # click's own
        as_json = "--json" in ctx.meta["arguments"]
        try:
            return super().invoke(ctx)
        except StillhouseError as error:
            ctx.exit(show_error(error, as_json))
        except click.UsageError as error:
            if not as_json:
                raise
            show_json_error({"type": "usage", "message": error.format_message()})
            ctx.exit(USAGE_ERROR)
        except BrokenPipeError:  # whoever read stdout has enough; click ends quietly
            raise
        except OSError as error:  # a file that cannot be read or written
            if as_json:
                show_json_error({"type": "usage", "message": str(error)})
            else:
                click.echo(f"Error: {error}", err=True)
            ctx.exit(USAGE_ERROR)
        except (KeyboardInterrupt, click.Abort):
            click.echo("Stopped.", err=True)
            ctx.exit(INTERRUPTED)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["arguments"] = tuple(args)
        return super().parse_args(ctx, args)


@click.group(
    cls=CommandLine, epilog=EXIT_CODES_HELP, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="stillhouse")
@click.option("--url", help="Where the service is; may also follow the command.")
@click.option("--token", help="Bearer token; may also follow the command.")
def command(url: str | None, token: str | None) -> None:  # commands find them in the context
    """Train PyTorch models on tables, distil them and predict with them."""


for part in (up, train, distill, predict, jobs, runs, models, datasets, errors, doctor):
    command.add_command(part)


def main() -> None:
    """The entry point."""
    sys.exit(command(prog_name="stillhouse"))
