"""Docstrings as Markdown: their formulas, which are plain text, become LaTeX.

A docstring is read in a terminal as it stands. On a page, an indented block of formulas becomes a
displayed formula, mathematics within a sentence an inline one, and lines `name: text` a list.
"""

import re
from collections.abc import Iterator


def _commands(names: str) -> dict[str, str]:
    return {name: f"\\{name}" for name in names.split()}


FUNCTIONS = {"floor": r"\operatorname{floor}"} | _commands("sin cos log exp max min sum int sqrt")
LAYOUT = _commands("frac hat langle rangle")
GREEK = {"lam": r"\lambda", "eps": r"\epsilon"} | _commands(
    "alpha beta sigma kappa tau eta gamma theta rho phi zeta omega pi"
)
NAMES = FUNCTIONS | LAYOUT | GREEK
SYMBOLS = {
    "<=": r"\le",
    ">=": r"\ge",
    "<-": r"\leftarrow",
    "->": r"\to",
    "...": r"\dots",
    **{symbol: f"\\{symbol}" for symbol in "%&#$"},
}
TOKEN = re.compile(
    r"""(?P<text>"[^"]*"|`[^`]*`|'s\b)|(?P<name>[A-Za-z]+\d*)|(?P<number>\d*\.?\d+)
    |(?P<symbol><=|>=|<-|->|\.\.\.|\S)|(?P<space>\s+)""",
    re.VERBOSE,
)
OPERAND = r"\w+'*(?:[_^](?:\w+|\{[^{}]*\}))*"
REWRITES = (
    (r"([a-z])(\d)_(?:\{([^{}]*)\}|(\w+))", r"\1_{\2,\3\4}"),  # x0_t
    (r"(\w+)\^(?=[\s),^]|$)", r"hat{\1}"),  # kappa^
    (r"<(\w[^<>=]*, [^<>=]*)>", r"langle \1 rangle"),
    (r"_(\w),(\w)", r"_{\1,\2}"),  # phi_2,3
    (r"\bd(\w+)/d(\w+)", r"frac{d \1}{d \2}"),
    (rf"(?<![\w}}])\(({OPERAND}) / ({OPERAND})\)(?!\^)", r"frac{\1}{\2}"),
    (r"^([^=]+:) +", r'"\1"  '),  # a label
    (r" {2,}=", " ="),
)
SUBSCRIPT = ("_", "^")
SETTING = re.compile(r"([a-z]\w*(?:, \w+)*): +(.*)")
SECTION = re.compile(r"(Args|Raises|Returns|Yields):")
ABBREVIATION = re.compile(r"[A-Za-z]\.[a-z\d]")
STOPS = ",.;:"
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))


def to_markdown(docstring: str) -> str:
    """Returns the Markdown of a docstring that `inspect.cleandoc` has cleaned."""
    return "\n\n".join(_convert_block(block) for block in re.split(r"\n\s*\n", docstring))


def to_latex(formula: str) -> str:
    """Returns the LaTeX of one line of plain mathematics."""
    for pattern, replacement in REWRITES:
        formula = re.sub(pattern, replacement, formula)
    last, parts = "", []
    for token in TOKEN.finditer(_brace_roots(formula)):
        parts.append(_convert_token(token, last in SUBSCRIPT))
        last = token[0]
    joined = re.sub(r"(?<=\w)\} \\text\{(?=\w)", " ", "".join(parts))
    return re.sub(r"( ?)\\text\{([^}]*)\}( ?)", r"\\text{\1\2\3}", joined)


def _convert_block(block: str) -> str:
    lines = block.splitlines()
    if SECTION.match(block):
        return block
    if block.startswith(">>>"):
        return f"```pycon\n{block}\n```"
    if all(line.startswith("    ") for line in lines):
        return _display(lines)
    if SETTING.match(block):
        return _list_settings(lines)
    return _mark_inline(" ".join(lines))


def _display(lines: list[str]) -> str:
    """Returns one displayed formula, a row for each line, indented as the lines are."""
    base = min(len(line) - len(line.lstrip()) for line in lines)
    rows = [_indent(line[base:]) for line in lines]
    body = rows[0] if len(rows) == 1 else _stack(rows)
    return f"$$\n{body}\n$$"


def _stack(rows: list[str]) -> str:
    return "\\begin{array}{l}\n" + " \\\\\n".join(rows) + "\n\\end{array}"


def _indent(line: str) -> str:
    text = line.lstrip()
    return r"\quad " * ((len(line) - len(text)) // 3) + to_latex(text)


def _list_settings(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        setting = SETTING.match(line)
        if setting:
            items.append(f"- `{setting[1].replace(', ', '`, `')}`: {setting[2]}")
        else:
            items[-1] += " " + line.strip()
    return "\n".join(map(_mark_inline, items))


def _brace_roots(formula: str) -> str:
    """Returns the formula with sqrt{...} for sqrt(...)."""
    before, root, after = formula.partition("sqrt(")
    depth = 1
    for end, sign in enumerate(after):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if not depth:
            return f"{before}sqrt{{{_brace_roots(after[:end])}}}{_brace_roots(after[end + 1 :])}"
    return before + root + after


def _convert_token(token: re.Match[str], is_script: bool) -> str:
    text = token[0]
    if token["space"]:
        return r" \quad " if len(text) > 1 else " "
    if token["text"]:
        return r"\text{" + text.strip('"`') + "}"
    latex = _convert_name(text, is_script) if token["name"] else SYMBOLS.get(text, text)
    return f"{{{latex}}}" if is_script and len(latex) > 1 else latex


def _convert_name(name: str, is_script: bool) -> str:
    """Returns a symbol, a symbol with its number, a differential, or a word."""
    letters = name.rstrip("0123456789")
    number = name[len(letters) :]
    if name in NAMES:
        return NAMES[name]
    if len(name) == 1 or (is_script and len(name) == 2):
        return name
    if len(letters) == 1:
        return f"{letters}_{number}" if len(number) == 1 else f"{letters}_{{{number}}}"
    if name[0] == "d" and (name[1:] in GREEK or name[1:] in ("r", "t", "u", "x", "y")):
        return rf"\,d{GREEK.get(name[1:], name[1:])}"
    return rf"\text{{{name}}}"


def _mark_inline(text: str) -> str:
    """Returns a paragraph with its mathematics between dollars, what is in backticks as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else " ".join(_mark_words(part.split(" "))) for part in parts
    )


def _mark_words(words: list[str]) -> Iterator[str]:
    """Yields the words, those that make up one formula as one."""
    run: list[str] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        is_part = _is_mathematical(word.rstrip(STOPS), run[-1:], following)
        if is_part:
            run.append(word)
        if run and not (is_part and _goes_on(run)):
            yield _mark_run(run)
            run = []
        if not is_part:
            yield _escape(word)
    if run:
        yield _mark_run(run)


def _goes_on(run: list[str]) -> bool:
    """Returns whether a formula may have further words: no stop ends it, or one in brackets."""
    text = " ".join(run)
    return text[-1] not in STOPS or any(
        text.count(left) > text.count(right) for left, right in BRACKETS
    )


def _is_balanced(text: str) -> bool:
    return all(text.count(left) == text.count(right) for left, right in BRACKETS)


def _is_mathematical(word: str, before: list[str], following: str) -> bool:
    """Returns whether a word may stand in a formula after the last word of it, if any."""
    if word in ("a", "A", "I"):
        return before == ["="] or following in ("=", "<", "+", "-", "/")
    if word in FUNCTIONS:
        return following.strip("()" + STOPS) in GREEK
    last = ""
    for token in TOKEN.finditer(word):
        if token["text"] or (token["name"] and not _is_symbol(token["name"], last in SUBSCRIPT)):
            return False
        last = token[0]
    return bool(re.search(r"[\w=+<>|/-]", word)) and not ABBREVIATION.match(word)


def _is_symbol(name: str, is_script: bool) -> bool:
    is_known = name in FUNCTIONS or name in GREEK
    return is_known or is_script or not _convert_name(name, False).startswith(r"\text")


def _mark_run(run: list[str]) -> str:
    """Returns a formula in dollars, with the punctuation around it outside of them."""
    text = " ".join(run)
    bare = text.rstrip(STOPS)
    before, after = "", text[len(bare) :]
    while bare.startswith("(") and bare.count("(") > bare.count(")"):
        before, bare = before + "(", bare[1:]
    while bare.endswith(")") and bare.count(")") > bare.count("("):
        bare, after = bare[:-1], ")" + after
    if not _is_balanced(bare) and len(run) > 1:
        return " ".join(_mark_run([word]) for word in run)
    if not _is_balanced(bare) or not any(token["name"] for token in TOKEN.finditer(bare)):
        return _escape(text)
    return f"{before}${to_latex(bare)}${after}"


def _escape(text: str) -> str:
    """Returns plain text as Markdown; names of settings, such as s_min, are code."""
    if re.fullmatch(r"\w+_\w+", text):
        return f"`{text}`"
    return re.sub(r"([*_<])", r"\\\1", text)
