"""Models of transformers, in standard parametrization as their library makes them, and what their cure comes to.

    python benchmarks/cure_types.py [TYPE ...]    # all, or these anew

writes ``benchmarks/cure_types.md``, a row for each type: how many exponents change, and the check before and after. A
type whose cure leaves curves undecided at three widths is cured again at four.
"""

import sys
import tempfile
from pathlib import Path

from coordcheck.config.load import load
from coordcheck.curing import Cured, cure_config
from coordcheck.judge.verdict import FAILURES

TYPES = [
    *("llama", "gpt2", "qwen2", "qwen3", "mistral", "gpt_neox", "opt", "gemma2", "phi", "phi3", "falcon", "olmo2"),
    *("cohere", "granite", "stablelm", "smollm3", "gemma", "olmo", "starcoder2", "nemotron", "glm", "gptj", "gpt_neo"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "t5", "mt5", "bart", "mbart", "pegasus", "m2m_100", "marian"),
]
WIDTHS, WIDER = "[64,128,256]", "[64,128,256,512]"
RESULT = Path(__file__).with_suffix(".md")
HEAD = [
    "# Cures of transformers' models: the output of `python benchmarks/cure_types.py`",
    "",
    f"seeds=auto, Adam, widths {WIDTHS}, and {WIDER} where those leave curves undecided.",
    "",
    "| type | widths | exponents changed | before | after | first at fault after |",
    "| --- | --- | --- | --- | --- | --- |",
]


def cure_type(name: str) -> tuple[str, Cured | str]:
    """The cure of a model type, or why there is none, and the widths of the check after it."""
    with tempfile.TemporaryDirectory() as runs:
        for widths in (WIDTHS, WIDER):
            overrides = ["model=hf", f"model.config={name}", f"widths={widths}", f"runs={runs}"]
            try:
                result = cure_config(load(overrides))
            except ValueError as error:
                return widths, str(error)
            if result.after.verdict != "inconclusive":
                break
    return widths, result


def row(name: str, widths: str, result: Cured | str) -> str:
    """A line of the table."""
    if isinstance(result, str):
        return f"| {name} | {widths} | | | | {result} |"
    cells = []
    for check in (result.before, result.after):
        counts = check.slopes["verdict"].value_counts()
        at_fault = int(counts[counts.index.isin(FAILURES)].sum())
        cells.append(f"{check.verdict}: {at_fault} at fault, {int(counts.get('inconclusive', 0))} undecided")
    first = str(result.after.findings[0]) if result.after.verdict == "fail" else ""
    return f"| {name} | {widths} | {result.cure.changes} | {cells[0]} | {cells[1]} | {first} |"


def main(names: list[str]) -> None:
    """Writes the table, a row at a time; of the rows that are there, those of other types stay."""
    lines = RESULT.read_text(encoding="utf-8").splitlines() if RESULT.exists() and names else []
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ") and "---" not in line}
    for name in names or TYPES:
        rows[name] = row(name, *cure_type(name))
        print(rows[name], flush=True)
        table = [rows[known] for known in dict.fromkeys([*TYPES, *names]) if known in rows]
        RESULT.write_text("\n".join([*HEAD, *table]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
