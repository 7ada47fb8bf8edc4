"""The cases: what is done to the disks, in which order, and which programs take part."""

from . import dirty, disk
from .meter import sync
from .options import MIB
from .process import Failed, say

TITLES = {
    "full": "Full backup into a new store (nbdcopy: into a new file)",
    "inc-1": "Incremental, 1 % changed",
    "inc-5": "Incremental, 5 % changed",
    "inc-0": "Incremental, nothing changed",
    "fixed": "Fixed cost: an incremental of one 64 KiB cluster",
    "restore": "Restore of the newest backup to a raw file",
    "revert": "Revert in place, 1 % changed, without a backup before it",
    "revert-safe": "Revert in place, 1 % changed, with the backup before it",
    "resync": "Resync after a kill of QEMU: everything is read and compared",
}
REFERENCE = {"full": "nbdcopy", "inc-1": "virtnbdbackup", "inc-5": "virtnbdbackup", "inc-0": "virtnbdbackup",
             "fixed": "virtnbdbackup", "restore": "nbdcopy", "resync": "nbdcopy-null"}
INCREMENTAL = {"inc-1": 0.01, "inc-5": 0.05, "inc-0": 0.0, "fixed": None}
REVERT = {"revert": False, "revert-safe": True}


class Bench:
    """The disk, the programs that can be measured here, and what came out."""

    def __init__(self, options, children, results, kinds):
        self.options, self.children, self.results = options, children, results
        self.folder = options.folder / "work"
        self.raw, self.qcow2 = disk.ready(options)
        self.data = disk.data_extents(self.qcow2)
        self.tools, self.absent = {}, {}
        for name in options.tools:
            self._add(name, kinds[name])

    def _add(self, name, kind):
        reason = kind.lacking()
        if reason is None:
            try:
                self.tools[name] = kind(self)
                return
            except Failed as error:
                reason = str(error)
        self.absent[name] = reason

    def run(self):
        """Every case that was asked for, in the order in which they build on each other."""
        for case in self.options.cases:
            if case in INCREMENTAL:
                self._incremental(case)
            elif case in REVERT:
                self._revert(case)
            else:
                self._whole(case)

    def _whole(self, case):
        """Full, restore and resync: no changes in between; A B C, A B C, ..."""
        taking_part = self._taking_part(case)
        if case == "restore":
            taking_part = [tool for tool in taking_part if self._based(case, tool)]
        for number in range(self.options.runs):
            for tool in taking_part:
                if case == "restore" and tool.name == "keepmark":
                    self._measure(case, tool, number, lambda tool=tool, first=not number: tool.restore(verify=first))
                else:
                    self._measure(case, tool, number, getattr(tool, case))

    def _incremental(self, case):
        """Each run changes every program's disk in the same new way."""
        taking_part = [tool for tool in self._taking_part("incremental") if self._based(case, tool)]
        for number in range(self.options.runs):
            changes = self._changes(case, number)
            self.results.dirtied(case, changes.length)
            for tool in taking_part:
                self._measure(case, tool, number, lambda tool=tool: changed(tool, changes))
            changes.remove()

    def _revert(self, case):
        """Each run changes every program's disk in a new way, and takes it back."""
        for number in range(self.options.runs):
            changes = self._changes(case, number)
            self.results.dirtied(case, changes.length)
            for tool in self._taking_part("revert"):
                self._measure(case, tool, number, lambda tool=tool, first=not number: reverted(tool, changes, REVERT[case], first))
            changes.remove()

    def _changes(self, case, number):
        share = INCREMENTAL.get(case, 0.01)
        length = dirty.CLUSTER if share is None else int(self.options.disk_bytes * share)
        return dirty.make(self.folder / f"dirty-{case}-{number}", f"{case} {number}", length, self.options.disk_bytes, self.data)

    def _taking_part(self, verb):
        return [tool for tool in self.tools.values() if getattr(tool, verb)]

    def _based(self, case, tool):
        """Whether it has a backup to build on or to restore."""
        if tool.name.startswith("nbdcopy"):
            return True
        try:
            tool.has_base &= not tool.has_chains
            tool.ensure_base()
            return True
        except Failed as error:
            self.results.fail(case, tool.name, error)
            return False

    def _measure(self, case, tool, number, action):
        if (case, tool.name) in self.results.failures:
            return
        try:
            cost = action()
        except Failed as error:
            self.results.fail(case, tool.name, error)
            say(f"{case} {number + 1} {tool.name}: {error}")
            return
        self.results.add(case, tool.name, number, cost)
        say(f"{case} {number + 1}/{self.options.runs} {tool.name}: {cost.wall:.2f} s, {cost.cpu:.2f} CPU s, {cost.rss_client // MIB} MiB")


def changed(tool, changes):
    """An incremental after these changes; the disk's file system is quiet again before the clock starts."""
    tool.write(changes)
    sync(tool.folder)
    return tool.incremental(changes)


def reverted(tool, changes, safe, verify):
    """A revert after these changes, as above."""
    tool.ensure_base()
    tool.write(changes)
    sync(tool.folder)
    return tool.revert(changes, safe, verify)
