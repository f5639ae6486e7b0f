"""Measured pages say of which version and weights their figures are, and are no older."""

import re
from pathlib import Path

import pytest
from test_protocol import protocol

from fewstep import __version__
from fewstep.eval.bench.rows import ResultRow
from fewstep.eval.bench.stamp import find_facts, find_stale, format_stamp
from fewstep.models.load import embedded_names, read_card

ROOT = Path(__file__).parents[1]
FIGURES = 6  # of one table: fewer are settings
HERE = {name: str(read_card(name)["sha256"])[:8] for name in embedded_names()}


def is_measured(page):
    """A page with a table of numbers that are no whole ones."""
    tables = re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)
    for table in tables:
        cells = [cell.strip(" `*") for line in table.splitlines()[2:] for cell in line.split("|")]
        if sum(bool(re.match(r"[-+]?\d*\.\d", cell)) for cell in cells) >= FIGURES:
            return True
    return False


def test_no_figure_is_older_than_what_it_speaks_of():
    """If this fails: measure the page again by the command it names, and renew its stamp."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    measured = [path for path in pages if is_measured(path.read_text())]
    assert len(measured) > 10
    stale = {path.name: list(find_stale(path.read_text())) for path in measured}
    assert {name: found for name, found in stale.items() if found} == {}


@pytest.mark.parametrize(
    ("stamp", "reason"),
    [
        ("", "no stamp"),
        ("<!-- measured: fewstep 0.0.1 -->", "figures of fewstep 0.0.1, which is "),
        ("<!-- measured: emoji 00000000 -->", "figures of emoji 00000000, which is "),
        ("<!-- measured: first edition -->", "figures of the first edition"),
        ("<!-- measured: nowhere/at-all.py:x 00000000 -->", "which is unknown now"),
    ],
)
def test_a_stale_page_says_what_is_old(stamp, reason):
    (found,) = find_stale(f"# Page\n{stamp}\n")
    assert reason in found


def test_a_present_page_and_one_that_speaks_of_the_first_edition_are_fresh():
    row = ResultRow.now(protocol(model="fashion-dit", weights="7b4a9ad1" + "0" * 56), 1.0)
    facts = find_facts([row])
    assert facts == {"fewstep": __version__, "fashion-dit": "7b4a9ad1"}
    assert list(find_stale(format_stamp({"fewstep": __version__, **HERE}))) == []
    page = "On the first edition.\n<!-- measured: first edition -->"
    assert list(find_stale(page)) == []


def test_tables_of_settings_are_not_measured():
    rows = "".join(f"| a | {i} |\n" for i in range(9))
    assert not is_measured(f"| n | m |\n|---|---|\n{rows}")
    assert is_measured(f"| n | m |\n|---|---|\n{rows.replace(' |', '.5 |')}")
