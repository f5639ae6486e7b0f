"""Hooks of the site, which `mkdocs build` calls because mkdocs.yml names this file.

Pages outside docs/ become pages of the site, files that pages link to are copied into it, and LaTeX
becomes MathML, which browsers draw without scripts or fonts from elsewhere.
"""

import posixpath
import re
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "extending.md",
    "examples/README.md": "examples.md",
}
SOURCES = {place: source for source, place in PAGES.items()}
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)]*)?\))")
MATHEMATICS = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and files outside docs/ that belong to the site."""
    for source, place in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=content))
    for path in sorted(_list_linked(files)):
        content = (ROOT / path).read_bytes()
        files.append(File.generated(config, _place(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links at where the site has what they name."""
    return LINK.sub(lambda link: link[1] + _point(link[2], page.file) + link[3], markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draws the formulas."""
    return MATHEMATICS.sub(lambda match: _draw(match[2], match[1] == "div"), html)


def _list_linked(files: Files) -> set[str]:
    """Returns the paths of the files that pages link to and that the site would not have."""
    links = {
        _resolve(link[2], page)
        for page in files.documentation_pages()
        for link in LINK.finditer(page.content_string)
    }
    return {path for path in links if path and _place(path).startswith("files/")}


def _resolve(target: str, page: File) -> str | None:
    """Returns the path from the root of what a page links to, or None if there is no such file."""
    source = SOURCES.get(page.src_uri, f"docs/{page.src_uri}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return path if (ROOT / path).is_file() else None


def _place(path: str) -> str:
    """Returns where the site has a file of the repository."""
    return (
        path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, f"files/{path}")
    )


def _point(target: str, page: File) -> str:
    path = _resolve(target, page)
    here = posixpath.dirname(page.src_uri)
    return posixpath.relpath(_place(path), here or ".") if path else target


def _draw(formula: str, is_block: bool) -> str:
    latex = re.sub(r"^\\[\[(]|\\[\])]$", "", unescape(formula).strip())
    return str(convert(latex, display="block" if is_block else "inline"))
