"""What the rules of a diagnosis look at, and the words that they share."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from coordcheck.config.schema import DiagnosisConfig, GateConfig
from coordcheck.judge.audit import AuditResult
from coordcheck.judge.audit_findings import SMALL_EPSILON
from coordcheck.judge.finding import Change, describe, format_range
from coordcheck.judge.verdict import FAILURES
from coordcheck.records.schema import LOSS, ROOT, WEIGHTS

FAULT_CLASSES = {
    "init": "the init std scales wrongly, or there is none",
    "reinitialized": "initialized again, by another rule",
    "learning_rate": "the learning rate scales wrongly",
    "multiplier": "a forward multiplier is missing or applied twice: readout, attention, embedding, residual",
    "shared_readout": "the init of a readout was rescaled, and the embedding that shares its weight with it",
    "width": "the width does not reach a module",
    "base_shapes": "the base shapes forget a dimension, or are lost",
    "untrained": "not trained, or in no parameter group",
    "decay": "the weight decay is coupled to the scaled learning rate",
    "epsilon": "the optimizer's epsilon is not small beside the gradient",
    "dead": "nothing passes",
    "nonfinite": "not finite",
    "gentle": "training is too gentle to see a fault",
    "harness": "the runs differ in what they must share",
    "unexplained": "what causes it is not known",
}
# what a curve is of, and how it changes
GROWTH = {
    LOSS: ("it", "grows", "shrinks"),
    "activation": ("its output", "grows", "shrinks"),
    "delta": ("its output's change", "grows", "shrinks"),
    "effective_update": ("its updates", "grow", "shrink"),
    "gradient": ("its gradient", "grows", "shrinks"),
    "weight": ("its spectral norm", "grows", "shrinks"),
    "update": ("the spectral norm of its updates", "grows", "shrinks"),
    "attention_logits": ("its attention logits", "grow", "shrink"),
}


@dataclass(frozen=True)
class Diagnosis:
    """What a rule says: the class of fault, why, and what to do, also as a number where it is one."""

    fault: str
    cause: str
    advice: str
    change: Change | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What rules look at.

    Attributes:
        gate: What turned slopes into verdicts.
        records: Of the check.
        curves: Slopes with verdicts.
        audit: None if there was none.
        seen: Whether the control's fault was seen; None without a control.
    """

    gate: GateConfig
    records: pd.DataFrame
    curves: pd.DataFrame
    audit: AuditResult | None
    seen: bool | None

    @property
    def limits(self) -> DiagnosisConfig:
        """What counts as certain, as the same, and as nothing."""
        return self.gate.diagnosis

    @cached_property
    def failing(self) -> pd.DataFrame:
        """Curves at fault, without those that training too gentle to see leaves to rounding or at zero."""
        at_fault = self.curves[self.curves["verdict"].isin(FAILURES)]
        if self.drowned:
            return at_fault[at_fault["step"] == 0]
        return at_fault[at_fault["verdict"] != "dead"] if self.seen is False else at_fault

    @cached_property
    def drowned(self) -> bool:
        """Whether changes are no larger than what rounding makes of outputs."""
        size = self.records.pivot_table(index=["module", "width", "seed", "step"], columns="kind", values="l1")
        if not {"activation", "delta"} <= set(size.columns):
            return False
        moved = size[size["delta"] > 0]  # a layer before a zero readout waits for its first gradient
        changed = (moved["delta"] / moved["activation"]).groupby("step").median()
        return bool(changed.max() < self.limits.rounding)

    @cached_property
    def parameters(self) -> pd.DataFrame:
        """The audit's rows by parameter; empty without an audit."""
        return pd.DataFrame() if self.audit is None else self.audit.parameters.set_index("parameter")

    @cached_property
    def orders(self) -> dict[str, int]:
        """Place of each module in the forward pass, under its name without an output's index."""
        # the others name parameters as well
        forward = self.curves[~self.curves["kind"].isin(("gradient", *WEIGHTS))]
        orders = forward.groupby(without_index(forward["module"]))["order"].min()
        return {str(module): int(order) for module, order in orders.items()}

    def order(self, module: str) -> int:
        """Place of a module, or of that of a parameter, in the forward pass; one that was not recorded comes last."""
        name = module.partition("[")[0]
        own = self.orders.get(name.rpartition(".")[0] or ROOT, len(self.orders))
        return self.orders.get(name, own if name in self.parameter_names else len(self.orders))

    @cached_property
    def parameter_names(self) -> set[str]:
        """Those that stand in the place of a module in records."""
        return {*self.records["module"][self.records["kind"].isin(WEIGHTS)]}

    def weight(self, module: str) -> pd.Series | None:
        """The audit's row of a module's own weight, else of the one that it was seen to use."""
        if not len(self.parameters):
            return None
        if module in self.parameters.index:
            own = self.parameters.loc[module]
            assert isinstance(own, pd.Series)
            return own
        name = f"{module}.weight".removeprefix(f"{ROOT}.")
        tied = self.parameters["tied_to"].str.split(", ").map(lambda names: name in names)
        mine = self.parameters[tied | (self.parameters.index == name)]
        if not len(mine):
            used = self.parameters["used_in"].str.split(" in ").str[-1] == module
            mine = self.parameters[used & ~self.parameters["role"].isin(("vector", "fixed"))]
        return mine.iloc[0] if len(mine) else None

    @cached_property
    def nothing_moves(self) -> bool:
        """Whether training changes nothing at all: every change is exactly zero, and the loss the same bit for bit."""
        changes = self.records[self.records["kind"] == "delta"]
        loss = self.records[self.records["role"] == LOSS].groupby(["width", "seed"])["l1"].nunique()
        return bool(len(changes) and (changes["l1"] == 0).all() and (loss <= 1).all())

    def lost_base_shapes(self) -> Diagnosis | None:
        """What is wrong with a readout of the mup package that does not multiply, where no hidden rate shrinks."""
        hidden = self.parameters[self.parameters["role"] == "hidden"]
        constant = hidden["lr_exponent"] - hidden["expected_lr_exponent"] > self.limits.certain
        if not len(hidden) or not constant.all():
            return None
        return Diagnosis(
            "base_shapes",
            f"It is a readout of the mup package, yet nothing divides its input by width_mult, and none of the "
            f"{len(hidden)} hidden matrices' learning rates shrinks: the model's base shapes are its own at every "
            f"width.",
            "Give mup.set_base_shapes the shapes of one base model, and keep what it attached to the parameters.",
        )

    def epsilons(self, module: str) -> pd.DataFrame:
        """Parameters of a module, or inside it, whose optimizer's epsilon is not small beside their gradient."""
        rows = self.parameters
        if not len(rows):
            return rows
        large = (rows["update"] == "adam") & (rows["eps"] > SMALL_EPSILON * rows["gradient"])
        large &= rows["eps_exponent"] - rows["gradient_exponent"] > self.gate.tolerance.exponent
        place = module.partition("[")[0]
        inside = rows["module"].eq(place) | rows["module"].str.startswith(f"{place}.") | (rows.index == place)
        return rows[large & inside]

    def reached(self, module: str, since: int, *, inside: bool = False) -> pd.Series:
        """Which failing curves a fault may have caused: those after it in this forward pass, and in later ones all.

        Args:
            module: Where the fault is.
            since: The step at which it shows.
            inside: Whether it may be anywhere inside the module, as a parameter of its own is, and not at its end.
        """
        if module in self.parameter_names:  # its weight is what fails, so what it makes may fail anywhere inside
            module = module.rpartition(".")[0] or ROOT
        begins = self.order(module)
        if inside:
            begins = min([begins, *(order for name, order in self.orders.items() if name.startswith(f"{module}."))])
        later = self.failing["step"] > max(since, 0)
        return later | ((self.failing["step"] == since) & (self.failing["order"] >= begins))


def without_index(modules: pd.Series) -> pd.Series:
    """Names of modules without that of an output: a layer that returns several tensors is one layer."""
    return modules.str.replace(r"\[.*", "", regex=True)


def by_locality(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves, the one where a fault starts first.

    By step; within a step a diverged or a silent module before its consequences, then what is local to a module, then
    weights, changes and sizes, each in forward order; gradients last, for they carry what comes after.
    """
    local = curves["kind"].eq("effective_update") | curves["role"].eq("attention_logits")
    rank = curves["kind"].map({"update": 1.5, "weight": 1.7, "delta": 2, "gradient": 4}).fillna(3).mask(local, 1)
    silent = curves["verdict"].eq("dead") & curves["kind"].eq("activation")
    rank = rank.mask(curves["verdict"].eq("nonfinite") | silent, 0)
    return curves.assign(rank=rank).sort_values(["step", "rank", "order"], kind="stable")


def beyond(curve: pd.Series) -> float:
    """How far a slope lies above its expected range, or, negative, below."""
    return float(curve["slope"] - np.clip(curve["slope"], curve["expected_low"], curve["expected_high"]))


def symptom(curve: pd.Series) -> str:
    """What a curve shows, as a sentence with its numbers."""
    what, grow, shrink = GROWTH[curve["role"] if curve["role"] in ("attention_logits", LOSS) else curve["kind"]]
    at = f"at step {curve['step']}"
    if curve["verdict"] in ("nonfinite", "dead"):
        return f"{what}, {at}: {describe(curve)}"
    verb = grow if beyond(curve) > 0 else shrink
    expected = format_range(curve["expected_low"], curve["expected_high"])
    return f"{what} {verb} like width^{curve['slope']:+.2f} {at} (expected {expected})."


def capitalized(sentence: str) -> str:
    """The sentence, begun with a capital letter."""
    return re.sub(r"^\w", lambda match: match[0].upper(), sentence)
