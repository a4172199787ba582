"""``verdict.json`` and ``audit.csv`` as data: what a check wrote beside its records, or anybody else."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coordcheck.records.names import shown
from coordcheck.records.read import MOST_BYTES, numbers, read_bytes, read_csv, read_json, refuse

AGAIN = "run the check again, or remove this file: its records are then judged by the default gate."
AUDIT_AGAIN = "run the check again, or remove this file: the check is then judged without an audit."
AUDIT_WORDS = (*("parameter", "module", "role", "tied_to", "update", "rules", "shape", "used_in", "readout_used_in"),)
# columns that judging adds
JUDGED = (
    *("expected_std_exponent", "expected_lr_exponent", "assumed_multiplier_exponent", "smallest_std_exponent"),
    *("forms", "source", "verdict"),
)
FLAGS = ("conflict", "trained", "returned")

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**53}
_WIDTHS = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 2**53}}
_OF_TRIAL = {
    **dict.fromkeys(("fault", "module", "change"), _TEXT),
    "parameters": {"type": "array", "items": _TEXT},
    "others": _COUNT,
    "helped": {"type": "boolean"},
    "verdict": {"enum": ["pass", "fail", "inconclusive"]},
    "undecided": _COUNT,
    "widths": _WIDTHS,
    "runs": _COUNT,
}
_TRIAL = {"type": "object", "required": [*_OF_TRIAL], "additionalProperties": False, "properties": _OF_TRIAL}
VERDICT_SCHEMA = {
    "type": "object",
    "required": ["config", "control", "audit", "unaudited", "skipped", "versions", "corpus_sha256"],
    "properties": {
        "verdict": {"enum": ["pass", "fail", "inconclusive"]},
        "config": {
            "type": "object",
            "required": ["gate"],
            "properties": {
                "gate": {"type": "object"},
                "readout": {"type": "object", "properties": {"name": _TEXT}},
                "parameters": {"type": "object", "additionalProperties": _COUNT},
            },
        },
        "control": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "twin": _TEXT,
                "widths": _WIDTHS,
                "seeds": _COUNT,
                "saw": {"type": ["boolean", "null"]},
                "evidence": _TEXT,
                "undecided": {"type": "boolean"},
                "axis": {"enum": ["width", "depth"]},
            },
        },
        "audit": {
            "type": ["object", "null"],
            "required": ["widths", "expect"],
            "properties": {
                "widths": _WIDTHS,
                "expect": {"enum": ["mup", "sp", "sp_full_align", "ntk", "mean_field", "umup", "completep"]},
                "sha256": _TEXT,
            },
        },
        "unaudited": _TEXT,
        "trials": {"type": "array", "items": _TRIAL},
        "skipped": {"type": "array", "items": _TEXT},
        "versions": {"type": "object", "additionalProperties": _TEXT},
        "corpus_sha256": {"type": ["string", "null"]},
    },
}


def read_verdict(path: Path) -> dict[str, Any]:
    """The content of ``verdict.json``, plain values of the types that a check writes.

    Raises:
        ValueError: naming the file, the place and the rule.
    """
    said: dict[str, Any] = read_json(path, VERDICT_SCHEMA, AGAIN)
    return said


def sha256(path: Path) -> str:
    """The checksum of a file.

    Raises:
        ValueError: if it cannot be read.
    """
    return hashlib.sha256(read_bytes(path, MOST_BYTES, AUDIT_AGAIN)).hexdigest()


def read_audit_table(path: Path, columns: Collection[str]) -> pd.DataFrame:
    """The measured part of ``audit.csv``.

    Args:
        path: The file.
        columns: That it must have; judged ones are made anew and may be missing.

    Raises:
        ValueError: naming the file, the place and the rule.
    """
    table = read_csv(path, AUDIT_AGAIN)
    if missing := [name for name in columns if name not in table.columns]:
        refuse(path, f"must have the columns of an audit; it lacks {shown(missing)}", AUDIT_AGAIN)
    if not len(table) or not table["parameter"].is_unique:
        refuse(path, "must have one row for each parameter, at least one", AUDIT_AGAIN)
    for name in FLAGS:
        if unknown := sorted(set(table[name]) - {"True", "False"}):
            refuse(path, f"must have True or False in column {name!r}; got {shown(unknown)}", AUDIT_AGAIN)
        table[name] = table[name] == "True"
    for name in [name for name in columns if name not in (*AUDIT_WORDS, *FLAGS)]:
        table[name] = numbers(table, name, path, AUDIT_AGAIN)
    for name in ("writes", "unwritten", "entries", "repeats"):
        if not (np.isfinite(table[name]) & (table[name] >= 0) & (table[name] % 1 == 0)).all():
            refuse(path, f"must have counts in column {name!r}: whole numbers, zero or more", AUDIT_AGAIN)
        table[name] = table[name].astype("int64")
    return table
