"""What the README says of the catalogue is what the catalogue says."""

import re
from collections import defaultdict
from pathlib import Path

from core.catalogue import CATALOGUE
from core.errors import class_of

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_table_of_errors_is_the_catalogue_of_the_tabular_core() -> None:
    expected = defaultdict(set)
    for entry in CATALOGUE.values():
        if class_of(entry.code).__module__ == "core.errors.platform":
            expected[entry.status].add(entry.code)
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \|", README, re.MULTILINE)
    assert {int(status): set(re.findall(r"`(\w+)`", codes)) for status, codes in rows} == expected
