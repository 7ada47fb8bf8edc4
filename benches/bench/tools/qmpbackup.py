"""qmpbackup on a running QEMU without a guest: QEMU itself writes the backup (push)."""

import os
import shutil

from ..meter import measure, warm
from ..vm import Vm
from .tool import Tool


def program():
    """One in the path, or that BENCH_QMPBACKUP names; no package of Debian has it."""
    return os.environ.get("BENCH_QMPBACKUP") or shutil.which("qmpbackup")


class Qmpbackup(Tool):
    """No encryption, no compression, no deduplication."""

    name = "qmpbackup"

    def __init__(self, bench):
        super().__init__(bench)
        self.vm = Vm.with_copy(bench.children, self.folder / "vm", bench.qcow2)

    @staticmethod
    def lacking():
        return None if program() else "qmpbackup is not installed (set BENCH_QMPBACKUP to a copy of it)"

    def label(self):
        return "qmpbackup"

    def write(self, dirty):
        self.vm.write(dirty)

    def _backup(self, level):
        warm(self.vm.image)
        words = [program(), "--socket", self.vm.socket, "backup", "--level", level, "--target", self._out, "--no-subdir"]
        return measure(words, self.folder, [self.vm.pid], written=self._out)

    def full(self):
        self._out = self.empty("store")
        self.vm.forget_bitmaps()
        cost = self._backup("full")
        self.has_base = True
        return cost

    def incremental(self, _dirty):
        return self._backup("inc")
