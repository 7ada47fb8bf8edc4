"""What the caller asked for, from the environment and nowhere else."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """How much is measured, and where."""

    folder: Path
    runs: int
    cases: tuple
    tools: tuple
    disk_mib: int
    keepmark: Path

    @property
    def disk_bytes(self):
        return self.disk_mib * MIB


def names(variable, default):
    """The comma-separated names in an environment variable; all of `default` where it is empty."""
    asked = tuple(name for name in os.environ.get(variable, "").replace(" ", ",").split(",") if name)
    unknown = set(asked) - set(default)
    if unknown:
        raise SystemExit(f"Error: {variable} has {', '.join(sorted(unknown))}\nHint: known are {', '.join(default)}")
    return asked or tuple(default)


def read(cases, tools):
    """Reads BENCH_DIR, RUNS, CASES, TOOLS, DISK_MIB and KEEPMARK."""
    return Options(
        folder=Path(os.environ.get("BENCH_DIR") or ROOT / "target/bench").resolve(),
        runs=int(os.environ.get("RUNS") or 3),
        cases=names("CASES", cases),
        tools=names("TOOLS", tools),
        disk_mib=int(os.environ.get("DISK_MIB") or 8192),
        keepmark=Path(os.environ.get("KEEPMARK") or ROOT / "target/release/keepmark").resolve(),
    )
