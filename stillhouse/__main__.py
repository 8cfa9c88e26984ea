"""``python -m stillhouse``: the command line."""

from stillhouse.command_line.main import main

main()
