"""The book of one forward pass: its uses, and which of them a factor belongs to.

Holds no tensor: :mod:`coordcheck.observe.flow` sees them and writes here.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from coordcheck.observe.operations import Contraction, Labels

VECTORS = ("elementwise", "norm")


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter in a weight.

    Attributes:
        parameter: Its name.
        dims: For each dimension of the weight, which ones of the parameter it comes from; None where unknown.
        factor: What the parameter was multiplied by.
        inner: Size of its dimensions that a product with another parameter has summed over.
        reason: Why the factor is unknown.
    """

    parameter: str
    dims: Labels | None
    factor: float = 1.0
    inner: int = 1
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """What is known of a tensor; one of which nothing is known is a constant.

    Attributes:
        parts: Parameters that it is made of, without any data; none for data.
        descends: Bits of all uses that it depends on.
        origins: Bits of the uses whose result it is, up to factors and sums.
        pending: The uses whose factor is still open, each with its factor up to the last sum.
        scales: Factors since the last sum, each with the module that applied it.
        source: The use that it is a multiple of; -1 for none, or a sum of several.
    """

    parts: tuple[Part, ...] = ()
    descends: int = 0
    origins: int = 0
    pending: tuple[tuple[int, float], ...] = ()
    scales: tuple[tuple[str, float], ...] = ()
    source: int = -1

    @property
    def scale(self) -> float:
        """The factor since the last sum."""
        return math.prod(factor for _, factor in self.scales)


@dataclass(slots=True)
class OpenUse:
    """A use while the pass runs.

    Attributes:
        own: Factor before it that is its own.
        disputed: Factor before it that may belong to the use `source`, whose result it multiplies.
        source_factor: The factor that `source` had before that.
        after: Factor after it; None while open.
        claimant: The use that consumed its result first, -1 for none.
        sizes: Root mean squares of (result, data, weight), where they are measured.
    """

    parameter: str
    operation: str
    module: str
    fan_in: int
    fan_out: int
    blocks: int
    dim_in: tuple[int, ...]
    dim_out: tuple[int, ...]
    own: float = 1.0
    disputed: float = 1.0
    source: int = -1
    source_factor: float = 1.0
    after: float | None = None
    claimant: int = -1
    claimed_at: float = 1.0
    reason: str = ""
    sizes: tuple[float, float, float] | None = None

    @property
    def ended(self) -> bool:
        """Whether what comes later no longer matters for its factor."""
        return self.after is not None or self.claimant >= 0


class Ledger:
    """The uses of one forward pass.

    Attributes:
        uses: In the order of the pass.
        used: Names of their parameters.
        returned: Bits of the uses whose results the model returned.
        read: Bits of the uses that another parameter's product read.
    """

    def __init__(self) -> None:
        self.uses: list[OpenUse] = []
        self.used: set[str] = set()
        self.returned = 0
        self.read = 0

    def open(
        self, operation: str, module: str, part: Part, shape: Sequence[int], contraction: Contraction | None
    ) -> int:
        """A new use of a part of a weight.

        Args:
            operation: What uses it.
            module: In which module.
            part: The parameter.
            shape: Of the weight; the use's sizes are those of its dimensions.
            contraction: What happens to them; None where that is not known.

        Returns:
            The number of the use.
        """
        fans = 0, 0, 0
        dim_in: tuple[int, ...] = ()
        dim_out: tuple[int, ...] = ()
        if contraction is not None:
            dims = part.dims or tuple(frozenset((-1,)) for _ in shape)
            fan_in, fan_out, blocks = contraction.sizes(shape, [bool(of) for of in dims])
            sums = any(dims[d] for d in contraction.summed)
            fans = (fan_in if sums else part.inner, fan_out * part.inner if sums else fan_out, blocks)
            if part.dims is not None:
                dim_in, dim_out = _dims(dims, contraction.summed), _dims(dims, contraction.out)
        self.used.add(part.parameter)
        self.uses.append(OpenUse(part.parameter, operation, module, *fans, dim_in, dim_out, part.factor))
        self.uses[-1].reason = part.reason
        return len(self.uses) - 1

    def result(self, indices: Sequence[int], descends: int = 0) -> Flow:
        """What is known of the result of some uses, which descends from others."""
        bits = union(1 << index for index in indices)
        return Flow(
            descends=descends | bits,
            origins=bits,
            pending=tuple((index, 1.0) for index in indices),
            source=indices[0] if len(indices) == 1 else -1,
        )

    def is_returned(self, index: int) -> bool:
        """Whether the model returned the result of a use."""
        return bool(self.returned >> index & 1)

    def leave(self, flows: Sequence[Flow]) -> None:
        """What the model returns ends the factors that are still open."""
        self.returned |= union(flow.origins for flow in flows)
        self.end(flows)

    def merged(self, flows: Sequence[Flow]) -> Flow:
        """The sum of branches, each of which keeps its own factor."""
        pending = {use: factor * flow.scale for flow in flows for use, factor in flow.pending}
        return Flow(
            descends=union(flow.descends for flow in flows),
            origins=union(flow.origins for flow in flows),
            pending=tuple((use, factor) for use, factor in pending.items() if not self.uses[use].ended),
        )

    def biased(self, main: Flow, biases: Sequence[Flow]) -> Flow:
        """A tensor plus parameters: still the result of the use that it was the result of."""
        return replace(self.merged([main, *biases]), source=main.source)

    def consume(self, index: int, flow: Flow) -> None:
        """A use takes data: the factors that it carries are before this use, or after the one it is a multiple of."""
        use = self.uses[index]
        source = self.uses[flow.source] if flow.source >= 0 else None
        for module, factor in flow.scales:
            mine = use.module == module != (source.module if source else None)
            if source is None or source.operation in VECTORS or mine:
                use.own *= factor
            else:
                use.disputed *= factor
                use.source = flow.source
        for pending, factor in flow.pending:
            if pending == flow.source:
                use.source_factor = factor
            if not self.uses[pending].ended:
                self.uses[pending].claimant, self.uses[pending].claimed_at = index, factor

    def end(self, flows: Iterable[Flow]) -> None:
        """Something nonlinear takes data, or it leaves the model."""
        for flow in flows:
            for pending, factor in flow.pending:
                if not self.uses[pending].ended:
                    self.uses[pending].after = factor * flow.scale


def union(bits: Iterable[int]) -> int:
    """Bits that are in any of several integers."""
    result = 0
    for some in bits:
        result |= some
    return result


def _dims(labels: Labels, places: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(frozenset().union(*(labels[place] for place in places))))
