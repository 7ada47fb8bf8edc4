"""virtnbdbackup, without compression, on a domain of a libvirtd of our own."""

import os
import shutil

from .. import libvirt
from ..meter import measure, warm
from ..process import run
from .tool import Tool


def program():
    """Debian's, or another one that BENCH_VIRTNBDBACKUP names."""
    return os.environ.get("BENCH_VIRTNBDBACKUP") or shutil.which("virtnbdbackup")


class Virtnbdbackup(Tool):
    """No encryption, no compression, no deduplication."""

    name = "virtnbdbackup"

    def __init__(self, bench):
        super().__init__(bench)
        self.domain = libvirt.Domain(bench.children, self.folder, bench.qcow2)

    @staticmethod
    def lacking():
        return libvirt.lacking() if program() else "virtnbdbackup is not installed"

    def label(self):
        return f"virtnbdbackup {run([program(), '-V']).strip()}"

    def write(self, dirty):
        self.domain.write(dirty)

    def _backup(self, level):
        warm(self.domain.image)
        words = [program(), "-n", "-U", "qemu:///system", "-d", libvirt.DOMAIN, "-l", level, "-o", self._out, "--scratchdir", self.folder]
        return measure([*self.domain.enter, *words], self.folder, self.domain.servers, written=self._out)

    def full(self):
        self._out = self.empty("store")
        self.domain.forget_checkpoints()
        cost = self._backup("full")
        self.has_base = True
        return cost

    def incremental(self, _dirty):
        return self._backup("inc")
