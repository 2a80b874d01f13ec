"""Where the code of a page may be broken into lines, for pages that are narrow."""

import re

CELL = re.compile(r"<td.*?</td>", re.DOTALL)
INLINE = re.compile(r"<code>[^<]+(?:<wbr>[^<]+)*</code>")
PART = re.compile(r"(?<=[\w}][._/])(?=[^\W\d])")  # not before a digit: 1.5e-4 is one number
OPTION = re.compile(r"(?<![\w-])--\w")


def with_line_breaks(html: str) -> str:
    """Let code in tables be broken after the parts of a name, and never an option after its dashes."""
    html = CELL.sub(lambda cell: INLINE.sub(lambda code: PART.sub("<wbr>", code[0]), cell[0]), html)
    return INLINE.sub(lambda code: OPTION.sub(r'<span class="option">\g<0></span>', code[0]), html)
