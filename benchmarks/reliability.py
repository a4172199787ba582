"""What is lost when commands are killed, interrupted, run side by side, or have no room: counted, and as a table.

One small check is made once, undisturbed. Then the same command is disturbed again and again over the same stored runs,
of which a random half is removed before each trial, so that there is work to do. After each trial every file must be
whole, what was stored must still be there unchanged, and what the check wrote must be what it wrote undisturbed.

    python benchmarks/reliability.py --kills 100 --interrupts 20 --terms 20 --concurrent 5
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from coordcheck.records.files import RECORDS, REPORT_PICTURE, REPORT_TEXT, SLOPES, TEMPORARY, VERDICT
from coordcheck.records.names import printable
from coordcheck.records.read import read_parquet
from coordcheck.records.store import CHECKSUM, checksum

CHECK = "model.depth=1 model.head_size=8 data.batch=2 data.context=16 widths=[16,32,64] base_width=16 seeds=3 steps=3"
COMMAND = [sys.executable, "-m", "coordcheck", *CHECK.split(), "plots=null", "workers=2", "runs=runs"]
NAMES = (RECORDS, SLOPES, VERDICT, REPORT_PICTURE, REPORT_TEXT)
DECIDED = (0, 3, 4)
SMALL = (1, 4, 8, 16, 64, 256)  # KiB that a file may have
PATIENCE = 600  # seconds after which a command hangs


@dataclass
class Count:
    """What came of the trials of one kind.

    Attributes:
        disturbance: What was done to the commands.
        trials: How many commands.
        ended: Commands that had ended before they were disturbed.
        lost: Stored runs that were there before and are gone, changed or damaged.
        stale: Files of a check that are neither as they were undisturbed nor missing.
        tracebacks: Commands that printed one.
        wrong: Commands that ended with an exit code of another meaning, or hung.
        left: Temporary files that stayed.
    """

    disturbance: str
    trials: int = 0
    ended: int = 0
    lost: int = 0
    stale: int = 0
    tracebacks: int = 0
    wrong: int = 0
    left: int = 0


class Trials:
    """Commands in a directory of their own.

    Args:
        home: Where they run.
        seed: Of the moments.
    """

    def __init__(self, home: Path, seed: int):
        self.home = home
        self.chance = random.Random(seed)
        start = time.perf_counter()
        code, error = self.end(self.start())
        if code not in DECIDED:
            raise SystemExit(f"the undisturbed command must end with a verdict; it ended with {code}: {error}")
        self.code, self.seconds = code, time.perf_counter() - start
        self.undisturbed = self.files("undisturbed", self.checks()[0])
        self.stored = {path.name: path.read_bytes() for path in self.runs()}

    def start(self, *arguments: str, limit: int | None = None) -> subprocess.Popen[str]:
        """Begins the command in a process group of its own."""

        def small() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=small,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def end(self, process: subprocess.Popen[str]) -> tuple[int | None, str]:
        """The exit code of a command, None if it hung, and what it printed on stderr."""
        try:
            _, error = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return None, process.communicate()[1]
        return process.returncode, error

    def checks(self) -> list[Path]:
        """Directories of checks."""
        return [path for path in sorted((self.home / "checks").glob("*")) if path.is_dir()]

    def runs(self) -> list[Path]:
        """Files of stored runs."""
        return [path for path in sorted((self.home / "runs").glob("*.parquet")) if not path.name.startswith(".")]

    def files(self, what: str, directory: Path) -> dict[str, object]:
        """What the files of a check hold, each whole; a file that is not there is left out."""
        found: dict[str, object] = {}
        for name in NAMES:
            path = directory / name
            if not path.exists():
                continue
            try:
                if name == RECORDS:
                    found[name] = checksum(read_parquet(path))
                elif name == VERDICT:
                    found[name] = json.loads(path.read_text(encoding="utf-8"))["sentence"]
                elif name == REPORT_PICTURE:
                    found[name] = path.read_bytes()[-8:-4] == b"IEND"
                else:
                    found[name] = path.read_text(encoding="utf-8")
            except (ValueError, KeyError) as error:
                found[name] = f"{what}: {error}"
        return found

    def forget_half(self) -> dict[str, bytes]:
        """Removes a random half of the stored runs, and the check; returns the other half."""
        for directory in self.checks():
            shutil.rmtree(directory)
        for path in self.runs():
            if self.chance.random() < 0.5:
                path.unlink()
        return {path.name: path.read_bytes() for path in self.runs()}

    def examine(self, count: Count, before: dict[str, bytes]) -> None:
        """Counts what a trial lost, changed and left."""
        now = {path.name: path.read_bytes() for path in self.runs()}
        count.lost += sum(now.get(name) != content for name, content in before.items())
        for path in self.runs():
            try:
                records = read_parquet(path)
                count.lost += records.attrs.pop(CHECKSUM, None) != checksum(records) or path.name not in self.stored
            except ValueError:
                count.lost += 1
        for directory in self.checks():
            for name, content in self.files("disturbed", directory).items():
                count.stale += content != self.undisturbed[name]
        left = [path for path in self.home.rglob(f"{TEMPORARY}*")]
        count.left += len(left)
        for path in left:
            path.unlink()

    def signalled(self, number: signal.Signals, trials: int, right: tuple[int, ...]) -> Count:
        """Sends a signal at random moments of a command's life."""
        count = Count(f"{number.name} at a random moment", trials)
        for _ in range(trials):
            before = self.forget_half()
            process = self.start()
            time.sleep(self.chance.uniform(0, self.seconds))
            early = process.poll() is not None
            if not early:
                process.send_signal(number)
            code, error = self.end(process)
            count.ended += early
            count.tracebacks += "Traceback" in error
            count.wrong += code not in (*right, self.code)
            self.examine(count, before)
        return self.finished(count)

    def finished(self, count: Count) -> Count:
        """Ends what was disturbed with the same command, undisturbed: it must come to the same."""
        code, error = self.end(self.start())
        count.wrong += code != self.code
        count.tracebacks += "Traceback" in error
        self.examine(count, {})
        count.lost += len(self.stored.keys() - {path.name for path in self.runs()})
        count.stale += self.files("finished", self.checks()[0]) != self.undisturbed
        return count

    def together(self, commands: int) -> Count:
        """Several commands at a time on the same stored runs, none of which is there yet."""
        count = Count("commands at a time on one store", commands)
        self.forget_half()
        for path in self.runs():
            path.unlink()
        begun = [self.start(f"hydra.run.dir=checks/{i}") for i in range(commands)]
        for process in begun:
            code, error = self.end(process)
            count.wrong += code != self.code
            count.tracebacks += "Traceback" in error
        self.examine(count, {})
        for directory in self.checks():
            count.stale += len(NAMES) - len(self.files("together", directory))
            shutil.rmtree(directory)
        return self.finished(count)

    def small_disks(self) -> Count:
        """No file may have more than some KiB: sentences and exit code 1, or a verdict; with -m too."""
        count = Count(f"at most {', '.join(map(str, SMALL))} KiB a file, alone and with -m", 2 * len(SMALL))
        for kibibytes, sweep in product(SMALL, (["-m"], [])):
            before = self.forget_half()
            code, error = self.end(self.start(*sweep, limit=kibibytes << 10))
            sentences = [line.startswith("coordcheck: ") for line in error.splitlines()]
            count.wrong += code not in (1, self.code) or (code == 1 and not (sentences and all(sentences)))
            count.tracebacks += "Traceback" in error
            count.ended += code == self.code
            self.examine(count, before)
        return self.finished(count)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs (default 100)")
    parser.add_argument("--interrupts", type=int, default=20, help="SIGINTs (default 20)")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs (default 20)")
    parser.add_argument("--concurrent", type=int, default=5, help="commands at a time (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        trials = Trials(Path(home), arguments.seed)
        print(f"undisturbed: exit code {trials.code} after {trials.seconds:.1f} s", file=sys.stderr, flush=True)
        kinds: list[Callable[[], Count]] = [
            lambda: trials.signalled(signal.SIGKILL, arguments.kills, (-signal.SIGKILL,)),
            lambda: trials.signalled(signal.SIGINT, arguments.interrupts, (130, -signal.SIGINT)),
            lambda: trials.signalled(signal.SIGTERM, arguments.terms, (-signal.SIGTERM, 143)),
            lambda: trials.together(arguments.concurrent),
            trials.small_disks,
        ]
        counts = []
        for kind in kinds:
            counts.append(kind())
            print(printable(counts[-1]), file=sys.stderr, flush=True)
    table = pd.DataFrame([vars(count) for count in counts]).astype(str)
    heads = ["disturbed by", "commands", "ended first", "lost runs", "stale files", "tracebacks", "wrong exit codes"]
    rows = [[*heads, "temporary files left"], ["---"] * len(table.columns), *table.to_numpy().tolist()]
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
