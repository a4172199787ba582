"""JUnit's XML, which CI systems show as tests."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from coordcheck.judge.ruling import Ruling
from coordcheck.records.files import write_atomically
from coordcheck.records.names import printable

NAME = 400  # characters of a test's name

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def write_junit(ruling: Ruling, path: Path) -> None:
    """Writes a test case for each curve, an undecided one skipped; names become printable, for XML takes no others."""
    counts = pd.Series([case.outcome for case in ruling.cases]).value_counts()
    suite = ElementTree.Element(
        "testsuite",
        name="coordcheck",
        tests=str(len(ruling.cases)),
        failures=str(counts.get("fail", 0)),
        skipped=str(counts.get("inconclusive", 0)),
        errors="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("verdict", ruling.verdict), ("sentence", ruling.sentence), ("theory", ruling.theory)):
        ElementTree.SubElement(properties, "property", name=name, value=_text(value))
    for case in ruling.cases:
        element = ElementTree.SubElement(
            suite, "testcase", classname=f"coordcheck.{case.kind}", name=printable(case.name, NAME)
        )
        if case.outcome != "pass":
            tag = "failure" if case.outcome == "fail" else "skipped"
            ElementTree.SubElement(element, tag, message=printable(case.message))
    ElementTree.indent(suite)
    tree = ElementTree.ElementTree(suite)
    write_atomically(path, lambda temporary: tree.write(temporary, encoding="utf-8", xml_declaration=True))


def _text(name: str) -> str:
    """`name` without the characters that XML cannot hold, not even escaped."""
    return NOT_XML.sub("\ufffd", name)
