"""The pages that follow from the package are what it says today."""

import re
from collections import Counter
from pathlib import Path

import fewstep
from fewstep.eval.docs import pages
from fewstep.samplers.placement import list_grids
from fewstep.solvers import names

DOCS = Path(__file__).parents[1] / "docs"


def test_pages_are_fresh():
    """If this fails: make docs."""
    assert {path.name: path.read_text() for path in (DOCS / "solvers").glob("*.md")} == pages()


def test_every_solver_has_a_section():
    text = "\n".join(pages().values())
    assert all(f"## `{name}`\n" in text for name in names())


def test_the_page_of_solvers_and_grids_names_all():
    text = (DOCS / "solvers-and-grids.md").read_text()
    missing = [name for name in [*names(), *list_grids()] if f"`{name}`" not in text]
    assert missing == []


def test_the_reference_has_every_public_name_once():
    texts = [page.read_text() for page in (DOCS / "reference").glob("*.md")]
    listed = Counter(
        name for text in texts for name in re.findall(r"^::: fewstep\.(\w+)$", text, re.M)
    )
    assert listed == Counter(set(fewstep.__all__) - {"__version__"})
