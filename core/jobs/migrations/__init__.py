"""Brings a ledger's database to the shape of ``core.jobs.tables``, step by step, with Alembic."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

HERE: Final = Path(__file__).parent


def migrate(connection: Connection, revision: str = "head") -> None:
    """Does nothing to a database that is there already."""
    config = Config()
    config.set_main_option("script_location", str(HERE))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
