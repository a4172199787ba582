"""The check and the audit of a JAX model that a configuration names."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from coordcheck.config.rules import seeds_of
from coordcheck.config.schema import NO_NUMBERS, CheckConfig, FlaxConfig
from coordcheck.jax.cell import JaxCell, configured_optimizer
from coordcheck.jax.check import audit_cell, check_cell, listed_seeds, twin_of
from coordcheck.jax.run import Plan
from coordcheck.models.corpus import Corpus, load_corpus
from coordcheck.result import Audit, CoordCheck
from coordcheck.run.source import import_build, import_dotted


def check(config: CheckConfig) -> CoordCheck:
    """Checks what a configuration names; finished runs are stored and reused as it says.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    cell, corpus = _cell(config)
    return check_cell(
        cell,
        twin_of(cell, config.gate, min(config.widths)) if config.control else None,
        Plan(config.steps, config.kinds, config.modules),
        config.gate,
        config.widths,
        listed_seeds(seeds_of(config), config.first_seed),
        audited=config.audit,
        try_advice=config.try_advice,
        store=config.runs,
        reuse=config.resume,
        config=dataclasses.asdict(config),
        corpus_sha256=None if corpus is None else corpus.sha256,
    )


def audit(config: CheckConfig) -> Audit:
    """Audits what a configuration names.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    return audit_cell(_cell(config)[0], config.widths, config.gate)


def _cell(config: CheckConfig) -> tuple[JaxCell, Corpus | None]:
    model = config.model
    assert isinstance(model, FlaxConfig)
    if config.device != "auto":
        raise ValueError(
            f"`device` is auto for model=flax, since JAX chooses it; got {config.device}. "
            f"For example JAX_PLATFORMS=cpu coordcheck model=flax."
        )
    build = import_build(model.build, model.args, min(config.widths))
    corpus = None if model.batch is not None else load_corpus(config.data)
    own = config.optimizer
    values = dataclasses.asdict(config)
    cell = JaxCell(
        partial(build, **model.args),
        import_dotted("batch", str(model.batch)) if corpus is None else _text(corpus, config),
        configured_optimizer(own) if model.optimizer is None else import_dotted("optimizer", model.optimizer),
        None if model.loss is None else import_dotted("loss", model.loss),
        config.widths,
        name=" ".join([model.build, *(f"{name}={value}" for name, value in model.args.items())]),
        precision=config.precision,
        optimizer_name=f"{own.name} lr={own.lr:g}" if model.optimizer is None else model.optimizer,
        determinants={key: value for key, value in values.items() if key not in NO_NUMBERS | {"widths"}},
    )
    return cell, corpus


def _text(corpus: Corpus, config: CheckConfig) -> Callable[[int], Any]:
    """From seed to a batch of the configured text."""

    def batch(seed: int) -> Any:
        windows = corpus.windows(seed, config.data.batch, config.data.context).astype("int32")
        return windows[:, :-1], windows[:, 1:]

    return batch
