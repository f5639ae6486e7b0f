"""Plain mathematics of docstrings becomes LaTeX, and words stay words."""

import pytest

from fewstep.eval.formulas import to_latex, to_markdown


@pytest.mark.parametrize(
    ("plain", "latex"),
    [
        ("x_s = (sigma_s / sigma_t) x_t", r"x_s = \frac{\sigma_s}{\sigma_t} x_t"),
        ("(a + b) / h", "(a + b) / h"),
        ("sqrt(1 - e^{-2 (eta h)}) z", r"\sqrt{1 - e^{-2 (\eta h)}} z"),
        ("x0_t + x0^{(k)}", r"x_{0,t} + x_0^{(k)}"),
        ("kappa^^2 - t^", r"\hat{\kappa}^2 - \hat{t}"),
        ("<u, v> / <v, v>", r"\langle u, v \rangle / \langle v, v \rangle"),
        ("dy/dtau = int f(u) du", r"\frac{d y}{d \tau} = \int f(u) \,du"),
        ("order 2:  a_ij D1", r"\text{order 2: }\quad a_{ij} D_1"),
        ("max over the rows of c_skip", r"\max\text{ over the rows of }c_{\text{skip}}"),
    ],
)
def test_formula(plain, latex):
    assert to_latex(plain) == latex


def test_sentence():
    text = "At order 2, h = lam_s - lam_t takes x0 (phi is `lms`'s) and 1 to 2 calls."
    assert to_markdown(text) == (
        r"At order 2, $h = \lambda_s - \lambda_t$ takes $x_0$ ($\phi$ is `lms`'s) and 1 to 2 calls."
    )


def test_what_is_no_formula_is_escaped():
    assert to_markdown("(B, *) of lower_order_final and min(a thing, 3)") == (
        r"($B$, \*) of `lower_order_final` and min(a thing, 3)"
    )


def test_blocks():
    text = "First.\n\n    x = y\n      + z\n\norder: p, of\n       h.\nkind, form: b\n\n>>> f(1)\n2"
    assert to_markdown(text).split("\n\n") == [
        "First.",
        "$$\n\\begin{array}{l}\nx = y \\\\\n+ z\n\\end{array}\n$$",
        "- `order`: $p$, of $h$.\n- `kind`, `form`: $b$",
        "```pycon\n>>> f(1)\n2\n```",
    ]


def test_sections_of_arguments_are_left_to_the_reference():
    text = "Args:\n    x: of shape (B, *)."
    assert to_markdown(text) == text
