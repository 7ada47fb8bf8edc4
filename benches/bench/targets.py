"""The targets that the project set itself, and how far a measurement is from them. Nothing asserts."""

from dataclasses import dataclass

from .options import MIB

OURS = "keepmark"


@dataclass(frozen=True)
class Target:
    """`kind` of figure of `tool` in `case`, against `other` (None: absolute), at most or at least `limit`."""

    case: str
    kind: str  # wall, cpu, rss_client, read/dirty
    other: str | None
    limit: float
    at_least: bool = False
    tool: str = OURS

    def sentence(self):
        sign = ">=" if self.at_least else "<="
        if self.kind == "read/dirty":
            return f"bytes read {sign} {self.limit}x the dirty bytes"
        if self.other is None:
            value = f"{self.limit / MIB:.0f} MiB" if self.kind == "rss_client" else f"{self.limit} s"
            return f"{NAMES[self.kind]} {sign} {value}"
        if self.at_least:
            return f"{self.limit:g}x faster than {self.other}"
        if self.tool != OURS:
            return f"{NAMES[self.kind]} of {self.tool} {sign} {self.limit:.2f}x {self.other}"
        return f"{NAMES[self.kind]} {sign} {self.limit:.2f}x {self.other}"


NAMES = {"wall": "wall", "cpu": "CPU seconds", "rss_client": "peak memory"}
MEMORY = 150e6

TARGETS = (
    Target("full", "wall", "nbdcopy", 1.8),
    Target("full", "cpu", "nbdcopy", 2.4),
    Target("full", "wall", "virtnbdbackup", 3, at_least=True),
    Target("full", "wall", "restic", 4, at_least=True),
    Target("full", "rss_client", None, MEMORY),
    Target("inc-1", "wall", "virtnbdbackup", 1 / 3),
    Target("inc-1", "read/dirty", None, 1.8),
    Target("inc-1", "rss_client", None, MEMORY),
    Target("inc-5", "read/dirty", None, 1.8),
    Target("inc-5", "rss_client", None, MEMORY),
    Target("inc-1", "wall", "blockdev-backup", 1.2, tool="keepmark-push"),
    Target("inc-5", "wall", "blockdev-backup", 1.2, tool="keepmark-push"),
    Target("inc-0", "wall", None, 1.0),
    Target("fixed", "wall", None, 0.6),
    Target("restore", "wall", "nbdcopy", 1.4),
    Target("restore", "rss_client", None, MEMORY),
    Target("resync", "rss_client", None, MEMORY),
)
