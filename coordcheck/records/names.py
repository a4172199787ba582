"""Names are data: whatever a module, a file or a message is called, it is printed on one line and ends nothing.

Torch takes any string for a module's name, and a stored frame holds whatever somebody wrote.
"""

import re

LONGEST = 4000  # characters of a sentence that are shown
LONGEST_NAME = 160  # of a name in a table or a picture
LONGEST_VALUE = 100  # of a value in a message


def printable(text: object, most: int = LONGEST) -> str:
    r"""`text` on one line: what does not print is shown as an escape, and what is too long loses its middle.

    >>> printable("red\x1b[31m\nhead")
    'red\\x1b[31m\\nhead'
    >>> printable("a" * 50, most=9)
    'aaaa…aaaa'
    """
    said = str(text)
    if len(said) > most:
        end = (most - 1) // 2
        said = f"{said[: most - 1 - end]}…{said[len(said) - end :]}"
    if said.isprintable():
        return said
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in said)


def over(axis: str, sentence: str) -> str:
    """A sentence about widths as one about another axis.

    >>> over("depth", "its output grows like width^+0.42; the widest of widths [2, 4] is not narrow")
    'its output grows like depth^+0.42; the deepest of depths [2, 4] is not shallow'
    """
    return sentence if axis == "width" else re.sub(_WORDS, lambda found: _IN_DEPTH[found[0]], sentence)


_IN_DEPTH = {"width": "depth", "widths": "depths", "width_mult": "depth_mult", "wide": "deep", "wider": "deeper"}
_IN_DEPTH |= {"widest": "deepest", "narrow": "shallow", "narrower": "shallower", "narrowest": "shallowest"}
_WORDS = rf"\b({'|'.join(_IN_DEPTH)})\b"


def shown(value: object, most: int = LONGEST_VALUE) -> str:
    """A value as a message quotes it: one line, no longer than can be read.

    >>> shown("x" * 200)[:5]
    "'xxxx"
    """
    try:
        text = repr(value[:1000] if isinstance(value, str) else value)
    except Exception:  # of somebody else's __repr__, which may do anything
        text = f"an object of {type(value).__name__}"
    return printable(" ".join(text[: 4 * LONGEST].split()), most)


def one_line(error: object) -> str:
    """A message as one printable line, whatever it quotes."""
    said = str(error)
    return printable(" ".join(said[: 4 * LONGEST].split()) if len(said) <= 4 * LONGEST else said)
