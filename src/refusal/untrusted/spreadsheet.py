"""Cells of CSV files that a spreadsheet opens as text, and back: a prompt or response must never become a formula.

A spreadsheet takes a cell for a formula, and may run it, that begins with `=`, `+`, `-` or `@` (in full width too), a
tab, a carriage return or a line feed. Such text gets an apostrophe in front, which says "text" there; so does text that
begins with an apostrophe before one of these, so that `cell_text` gives back what there was. Numbers stay numbers.
NULs, which no CSV reader takes, become U+FFFD; that alone is not undone.

Source: OWASP, CSV Injection.
"""

from __future__ import annotations

import re

_FORMULA = re.compile("'*[=+\\-@\uff1d\uff0b\uff0d\uff20\t\r\n]")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def plain_cell(content: object) -> str:
    """Return a cell that no spreadsheet takes for a formula.

    >>> plain_cell("=1+1"), plain_cell(-0.5), plain_cell("'=1"), plain_cell("a=1")
    ("'=1+1", '-0.5', "''=1", 'a=1')
    """
    text = str(content).replace("\x00", "\ufffd")
    is_harmless = _NUMBER.fullmatch(text) or not _FORMULA.match(text)
    return text if is_harmless else f"'{text}"


def cell_text(cell: str) -> str:
    """Return the text that `plain_cell` made a cell of.

    >>> cell_text("'=1+1"), cell_text("''=1"), cell_text("'quoted'")
    ('=1+1', "'=1", "'quoted'")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
