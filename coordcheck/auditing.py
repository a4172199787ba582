"""The whole flow of an audit: models at several widths, what is read off them, and what that says. Nothing is trained.

:func:`audit` audits a user's own model, :func:`audit_config` what a configuration names, :func:`audit_cell` either.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from coordcheck.config.axes import check_widths
from coordcheck.config.call import gate_of
from coordcheck.config.rules import refuse_depth
from coordcheck.config.schema import CheckConfig, FlaxConfig, GateConfig
from coordcheck.result import Audit

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn, optim

    from coordcheck.run.cell import Cell


def audit(
    build: "Callable[[int], nn.Module]",
    widths: Sequence[int] = (64, 128, 256),
    optimizer: "Callable[[nn.Module], optim.Optimizer] | None" = None,
    expect: str = "mup",
    *,
    decay: str | None = None,
    batch: Any = None,
    loss: "Callable[[nn.Module, Any], Tensor] | None" = None,
    accept: Sequence[str] = (),
) -> Audit:
    """Audits how a model of yours is initialized, and how that and its learning rates scale. Nothing is trained.

    Args:
        build: From width to an initialized, parametrized model with the same parameter names at every width, or to such
            a model and its optimizer; called with torch's global generator seeded.
        widths: d_model, at least three distinct values.
        optimizer: From model to its optimizer; None leaves learning rates and decays out.
        expect: Whose exponents to expect, as for :func:`coord_check`.
        decay: As for :func:`coord_check`.
        batch: As for :func:`coord_check`. With one, a forward pass is run at each width, and roles and forward
            multipliers are read; without, they are assumed from shapes and classes.
        loss: Likewise.
        accept: Deviations that are meant, as for :func:`coord_check`; they are listed as accepted and fail nothing.

    Returns:
        The audit: its ``parameters`` (one row each), ``findings`` and ``verdict``.

    Raises:
        ValueError: naming the value, the rule and a working example.

    Example:
        >>> from torch import nn, optim
        >>> def build(width):
        ...     return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width))
        >>> report = audit(build, optimizer=lambda model: optim.Adam(model.parameters(), lr=1e-3))
        >>> report.parameters.loc[[2], ["parameter", "std_exponent", "lr_exponent", "verdict"]].round(1).values.tolist()
        [['2.weight', -0.5, 0.0, 'learning_rate']]
    """
    import torch

    from coordcheck.models.given import audited_functions, least_of_audit
    from coordcheck.models.own import OwnCell, default_optimizer
    from coordcheck.run.estimate import fitting

    wanted = check_widths(widths)
    gate = gate_of(expect, decay, accept)
    make_model, make_optimizer = audited_functions(build, optimizer)
    with in_training():
        fitting(lambda width: least_of_audit(build, width), wanted, torch.device("cpu"))
        if batch is None:
            return _audited(make_model, wanted, make_optimizer, gate)
        cell = OwnCell(build, batch, optimizer or default_optimizer(), loss, wanted, trained=False)
        return audit_cell(cell, wanted, gate, with_optimizer=optimizer is not None)


def audit_cell(cell: "Cell", widths: Sequence[int], gate: GateConfig, with_optimizer: bool = True) -> Audit:
    """Audits a cell on CPU, as :func:`audit` does a model.

    Args:
        cell: What is built.
        widths: At least three.
        gate: Whose exponents to expect, and how far beyond them still passes.
        with_optimizer: Whether learning rates and decays are looked at.
    """
    import torch

    cpu = torch.device("cpu")

    def forward(model: "nn.Module") -> object:
        return cell.loss(model, cell.batch(0, cpu))

    return _audited(
        lambda width: cell.build(width, 0, cpu),
        widths,
        (lambda model: cell.optimizer(model, min(widths))) if with_optimizer else None,
        gate,
        forward,
    )


def _audited(
    build: "Callable[[int], nn.Module]",
    widths: Sequence[int],
    optimizer: "Callable[[nn.Module], optim.Optimizer] | None",
    gate: GateConfig,
    forward: "Callable[[nn.Module], object] | None" = None,
) -> Audit:
    import torch

    from coordcheck.observe.parameters import measure

    ascending = sorted(widths)
    threads = torch.get_num_threads()
    # on a machine that does other things, threads wait for each other longer than these short operations take
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            measured = measure(build, ascending, optimizer, forward)
    finally:
        torch.set_num_threads(threads)
    return Audit.from_parameters(measured, ascending, gate.expect, gate.tolerance.exponent, gate.decay, gate.accept)


def audit_config(config: CheckConfig) -> Audit:
    """Audits what a configuration names.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if isinstance(config.model, FlaxConfig):
        audited: Audit = of_jax().audit(config)
        return audited
    from coordcheck.models.families import make_cell

    refuse_depth(config, "coordcheck-audit")
    return audit_cell(make_cell(config), config.widths, config.gate)


def of_jax() -> Any:
    """The room of JAX, where its packages are installed.

    Raises:
        ValueError: if they are not.
    """
    try:
        from coordcheck.jax import configured
    except ModuleNotFoundError as error:
        raise ValueError(
            f"model=flax needs JAX's packages, and {error.name} is not installed. "
            f"For example pip install 'coordcheck[jax]'."
        ) from error
    return configured


@contextmanager
def in_training(device: "torch.device | None" = None) -> Iterator[None]:
    """Lets gradients flow, whatever mode the caller is in, and leaves torch's global generators as they were."""
    import torch

    on_gpu = device is not None and device.type == "cuda" and torch.cuda.is_available()
    devices = [device] if on_gpu else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        yield
