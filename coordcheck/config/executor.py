"""The rules of who makes the runs of a check."""

from coordcheck.config.schema import ENGINES, ExecutorConfig, ExecutorName
from coordcheck.records.names import shown


def check_executor(executor: ExecutorConfig, stays: str = "") -> None:
    """Checks what an executor is told.

    Args:
        executor: Its name and arguments.
        stays: What makes its runs in this process whatever the executor; empty for what does not.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if executor.args and executor.name not in ENGINES:
        raise ValueError(
            f"`executor` {executor.name} takes no arguments; got {shown(executor.args)}. For example "
            f"executor={executor.name}, and workers=2 for two runs at a time."
        )
    if stays and executor.name not in (ExecutorName.auto, ExecutorName.threads):
        raise ValueError(
            f"{stays} makes its runs in this process; got executor={executor.name}. For example executor=threads."
        )
