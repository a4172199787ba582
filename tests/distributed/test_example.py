"""The example of FSDP2, as its README says to run it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import NO_TORCH, run

SCRIPT = Path(__file__).parents[2] / "examples/fsdp2/train.py"


@pytest.mark.slow
def test_the_example_runs_by_torchrun_and_its_report_finds_the_fault(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    options = ["--widths", "64", "128", "256", "--seeds", "2", "--steps", "3", "--standard"]
    command = [sys.executable, *torchrun, "--master-port", port, str(SCRIPT), *options]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert len(list((tmp_path / "checks/fsdp2/recorded").iterdir())) == 3 * 2 * 2
    code, out, err = run(tmp_path, "checks/fsdp2", entry="report", prelude=NO_TORCH)
    assert (code, err) == (3, ""), out + err
    assert "FAIL" in out
    assert "blocks." in out
