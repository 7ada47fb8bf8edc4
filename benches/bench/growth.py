"""How the cost of an incremental of 64 MiB grows with the size of the disk and of the repository."""

from . import dirty
from .meter import sync
from .options import MIB
from .process import Failed, run, say
from .tools.keepmark import Keepmark

CHANGED = 64 * MIB
GIB = 1024 * MIB
SIZES_GIB = (8, 64, 512)
CHUNKS, BACKUPS, VMS = 4_000_000, 1_000, 50
WALL_LIMIT, MEMORY_LIMIT = 1.2, 32 * MIB

SMALL, LARGE = "sparse-8", "sparse-8-filled"
LABELS = {
    **{f"sparse-{size}": f"disk of {size} GiB" for size in SIZES_GIB},
    LARGE: f"8 GiB, {CHUNKS // 1_000_000} M chunks, {BACKUPS} backups",
}
TITLE = "growth"


class Sparse(Keepmark):
    """keepmark on a sparse disk of a size, in a store of its own, which may have been filled beforehand."""

    def __init__(self, bench, name, size_gib, filled=None):
        self.name = name
        self.size, self._filled = size_gib * GIB, filled
        image = bench.folder / f"base-{size_gib}.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", image, self.size])
        super().__init__(Place(bench.options, bench.children, image))

    def new_store(self):
        super().new_store()
        if self._filled:
            say(f"filling the repository with {CHUNKS:,} index entries and {BACKUPS:,} backups")
            run([self._filled, self._store, "bench", self.cache, str(CHUNKS), str(BACKUPS), str(VMS)])


class Place:
    """What the programs need of a bench."""

    def __init__(self, options, children, qcow2=None):
        self.options, self.children, self.qcow2 = options, children, qcow2
        self.folder = options.folder / "work"


def measure(options, children, results, synthesize):
    """Runs A B C D, A B C D, ...; the first incremental of each is not counted, because it warms what a daily use has warm."""
    place = Place(options, children)
    subjects = [Sparse(place, f"sparse-{size}", size) for size in SIZES_GIB]
    subjects.append(Sparse(place, LARGE, SIZES_GIB[0], synthesize))
    results.dirtied(TITLE, CHANGED)
    for number in range(-1, options.runs):
        for subject in subjects:
            try:
                subject.ensure_base()
                cost = once(place, subject, number)
            except Failed as error:
                results.fail(TITLE, subject.name, error)
                continue
            say(f"{number + 1}/{options.runs} {subject.name}: {cost.wall:.2f} s, {cost.cpu:.2f} CPU s, {cost.rss_client // MIB} MiB")
            if number >= 0:
                results.add(TITLE, subject.name, number, cost)


def once(place, subject, number):
    """Changes 64 MiB, scattered over the whole disk, and backs them up."""
    changes = dirty.make(place.folder / f"dirty-{number}", f"growth {number}", CHANGED, subject.size, ())
    try:
        subject.write(changes)
        sync(subject.folder)
        return subject.incremental(changes)
    finally:
        changes.remove()


def verdicts(results):
    """How much more than the smallest each of the others took."""
    if SMALL not in results.tools(TITLE):
        return
    for name in results.tools(TITLE):
        if name == SMALL:
            continue
        wall = results.ratio(TITLE, name, SMALL, "wall")
        memory = results.median(TITLE, name, "rss_client") - results.median(TITLE, SMALL, "rss_client")
        met = "met" if wall < WALL_LIMIT and memory < MEMORY_LIMIT else "MISSED"
        yield f"{LABELS[name]}: {wall:.2f}x the time (target < {WALL_LIMIT}), {memory / MIB:+.0f} MiB (target < +32): {met}"
