"""Sets of changes: scattered, 64 KiB-aligned runs as a busy guest leaves them, half random bytes, half machine code."""

import os
import random
from dataclasses import dataclass
from pathlib import Path

CLUSTER = 64 << 10
MEAN_CLUSTERS = 4
SHARE_IN_DATA = 0.7
CODE_BYTES = 64 << 20


@dataclass(frozen=True)
class Run:
    """One write; its content is a file, because qemu-io takes it from one."""

    offset: int
    length: int
    file: Path


@dataclass(frozen=True)
class Dirty:
    """A set of changes."""

    folder: Path
    runs: tuple

    @property
    def length(self):
        return sum(run.length for run in self.runs)

    def write_to(self, path):
        """Writes the runs into a raw file."""
        with open(path, "r+b", buffering=0) as disk:
            for run in self.runs:
                os.pwrite(disk.fileno(), run.file.read_bytes(), run.offset)

    def remove(self):
        for run in self.runs:
            run.file.unlink()
        self.folder.rmdir()


def code():
    """Machine code of this host, the same bytes for every run of the benchmark."""
    pool, seen = bytearray(), set()
    for path in sorted(Path("/usr/bin").iterdir()):
        path = path.resolve()
        if path in seen or not path.is_file() or not os.access(path, os.R_OK):
            continue
        seen.add(path)
        content = path.read_bytes()
        if content[:4] == b"\x7fELF":
            pool += content
        if len(pool) >= CODE_BYTES:
            break
    return bytes(pool[:CODE_BYTES])


def clusters_of(extents):
    """Numbers of the clusters that lie within the extents (offset, length)."""
    return [c for offset, length in extents for c in range(-(-offset // CLUSTER), (offset + length) // CLUSTER)]


def make(folder, seed, length, disk_bytes, data):
    """A new set of about `length` bytes. `data` are the disk's allocated extents; the same seed makes the same set."""
    dice = random.Random(seed)
    folder.mkdir(parents=True)
    inside, total, wanted = clusters_of(data), disk_bytes // CLUSTER, -(-length // CLUSTER)
    taken, runs, pool = set(), [], code() if length else b""
    while len(taken) < wanted:
        start = dice.choice(inside) if inside and dice.random() < SHARE_IN_DATA else dice.randrange(total)
        count = min(1 + int(dice.expovariate(1 / (MEAN_CLUSTERS - 0.5))), wanted - len(taken), total - start)
        clusters = range(start, start + count)
        if not taken.isdisjoint(clusters):
            continue
        taken.update(clusters)
        file = folder / f"{len(runs):05}"
        file.write_bytes(content(dice, count * CLUSTER, pool))
        runs.append(Run(start * CLUSTER, count * CLUSTER, file))
    return Dirty(folder, tuple(runs))


def content(dice, length, pool):
    """Random bytes or machine code, by the toss of a coin; never the same twice."""
    if dice.random() < 0.5 or len(pool) <= length:
        return dice.randbytes(length)
    place = dice.randrange(len(pool) - length)
    return dice.randbytes(64) + pool[place + 64 : place + length]
