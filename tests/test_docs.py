"""The solver pages are what the docstrings say today."""

from pathlib import Path

from fewstep.eval.docs import pages
from fewstep.solvers import names

FOLDER = Path(__file__).parents[1] / "docs" / "solvers"


def test_pages_are_fresh():
    """If this fails: make docs."""
    assert {path.name: path.read_text() for path in FOLDER.glob("*.md")} == pages()


def test_every_solver_has_a_section():
    text = "\n".join(pages().values())
    assert all(f"## `{name}`\n" in text for name in names())
