"""What a notebook shows of a check: the verdict, what was found, and the picture."""

from base64 import b64encode
from html import escape

from coordcheck.judge.judgement import Judgement
from coordcheck.records.names import printable
from coordcheck.report.figures.style import VERDICT_COLOURS

SHOWN = 8  # findings


def check_html(check: Judgement, picture: bytes) -> str:
    """A check as HTML that needs no other file.

    Args:
        check: The check.
        picture: Its picture, a PNG.
    """
    verdict = f"<b style='color:{VERDICT_COLOURS[check.verdict]}'>{_text(check.headline())}</b>"
    findings = "".join(f"<li>{_text(finding)}</li>" for finding in check.findings[:SHOWN])
    more = len(check.findings) - SHOWN
    findings += f"<li>and {more} more: check.findings</li>" if more > 0 else ""
    source = f"data:image/png;base64,{b64encode(picture).decode()}"
    image = f"<img style='max-width:100%' alt='the picture of the check' src='{source}'>"
    lines = [verdict, _text(check.cell()), f"<ol>{findings}</ol>" if findings else "", _text(check.control), image]
    return "".join(f"<div>{line}</div>" for line in lines if line)


def _text(said: object) -> str:
    return escape(printable(said))
