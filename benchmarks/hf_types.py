"""Which model types of Hugging Face transformers ``coordcheck model=hf model.config=TYPE`` can check.

Builds every language model type of the installed transformers as the command line does, at widths 64 and 128, compares
parameters, and runs one forward and one backward pass at width 64. A refusal that advises an override is followed as
typed. Each type runs in a process of its own with a limit of time; the table is written anew after each::

    python benchmarks/hf_types.py benchmarks/hf_types.md
    python benchmarks/hf_types.py table.md llama bert
"""

import argparse
import multiprocessing
import re
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers.models.auto import modeling_auto

from coordcheck.config.load import load
from coordcheck.models import hf
from coordcheck.models.families import make_cell
from coordcheck.models.hf import HFCell
from coordcheck.observe.roles import infshapes, shapes

SECONDS = 120
CPU = torch.device("cpu")
CHOICE = (
    *("model=hf", "parametrization=sp", "gate.expect=sp", "readout=own", "widths=[64,128,256]", "base_width=64"),
    *("model.depth=2", "data.vocab_size=256", "data.context=32", "data.batch=2"),
)
ADVICE = re.compile(r"For example '?(model\.overrides=\{.*\}|embedding=\w+)'?\.$")


def attempt(config: str, *overrides: str) -> str:
    """What runs: the model's class, what it learns and its loss.

    Raises:
        ValueError: where the type is refused.
    """
    cell = make_cell(load([*CHOICE, f"model.config={config}", *overrides]))
    assert isinstance(cell, HFCell)
    grown = infshapes(*(shapes(cell.on_meta(width)) for width in (64, 128)))
    model, batch = cell.build(64, 0, CPU), cell.batch(0, CPU)
    loss = cell.loss(model, batch)
    loss.backward()
    if not torch.isfinite(loss):
        raise AssertionError(f"the loss is {loss.item()}")
    kind = hf.kind_of_model(model.config)
    check_learning(kind, model.eval(), batch)
    share = sum(shape.ninf() > 0 for shape in grown.values()) / len(grown)
    return f"runs: {type(model).__name__}, {kind}, loss {loss.item():.2f}, {share:.0%} of parameters grow"


def check_learning(kind: str, model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Checks that a causal model or a decoder does not see the last token early, and which labels a causal one has."""
    name = "decoder_input_ids" if kind == "seq2seq" else "input_ids"
    changed = batch | {name: torch.cat([batch[name][:, :-1], (batch[name][:, -1:] + 1) % 256], dim=1)}
    with torch.no_grad():
        output, logits = model(**batch), model(**changed).logits
    if kind != "masked" and (output.logits - logits)[:, :-1].abs().max() > 1e-4:
        raise AssertionError("a token changes the logits before it")
    if kind == "causal":
        seen, labels = output.logits[:, :-1].float().flatten(0, 1), batch["labels"]
        labels = labels[:, :-1] if getattr(model.config, "decoder_start_token_id", None) is not None else labels[:, 1:]
        if abs(cross_entropy(seen, labels.flatten()) - output.loss) > 0.3:
            raise AssertionError("the loss is not that of the next token")


def report(config: str, sender: Any) -> None:
    """Sends the outcome of a type, and where it follows from advice, that too."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    overrides: list[str] = []
    told: list[str] = []
    try:
        while True:
            try:
                outcome = attempt(config, *overrides)
                sentence = f"refused, runs as advised: {told[0]}" if told else outcome
                return sender.send(sentence + (f" ({outcome})" if told else ""))
            except ValueError as error:
                told.append(" ".join(str(error).split()))
                advice = ADVICE.search(told[-1])
                if not advice or len(told) > 3 or advice[1] in overrides:
                    unsupported = "is not supported" in told[-1]
                    return sender.send(("refused: " if unsupported else "fails on advice: ") + " / ".join(told))
                overrides.append(advice[1])
    except BaseException as error:  # one type must not lose the others
        sender.send(f"fails: {type(error).__name__}: {' '.join(str(error).split())}")


def outcome_of(config: str) -> str:
    """The outcome of a type in a process of its own."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=report, args=(config, sender))
    process.start()
    sender.close()
    try:
        return str(receiver.recv()) if receiver.poll(SECONDS) else f"fails: no outcome in {SECONDS} seconds"
    except EOFError:
        return "fails: its process ended without an outcome"
    finally:
        process.kill()
        process.join()


def written(outcomes: dict[str, str]) -> str:
    """The table in Markdown, with counts."""
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes.values())
    head = (
        f"# Model types of transformers {transformers.__version__}\n\n"
        "`python benchmarks/hf_types.py benchmarks/hf_types.md`: every type with a causal or an encoder-decoder "
        "language model, at widths 64 and 128, depth 2, 256 tokens, context 32, under `" + " ".join(CHOICE) + "`.\n\n"
        f"{len(outcomes)} types: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()) + ".\n\n"
    )
    rows = "".join(f"| {name} | {outcome.replace('|', '/')} |\n" for name, outcome in outcomes.items())
    return head + "| type | outcome |\n| --- | --- |\n" + rows


def main() -> None:
    """Parses the command line, runs, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="where the table is written")
    parser.add_argument("types", nargs="*", help="model types; all by default")
    options = parser.parse_args()
    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    types = options.types or sorted({name for names in known for name in names})
    outcomes: dict[str, str] = {}
    for number, config in enumerate(types, 1):
        start = time.perf_counter()
        outcomes[config] = outcome_of(config)
        options.table.write_text(written(outcomes))
        print(f"{number}/{len(types)} {config} {time.perf_counter() - start:.1f} s {outcomes[config]}", flush=True)


if __name__ == "__main__":
    main()
