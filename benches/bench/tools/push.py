"""Push into plain qcow2 images: by keepmark, and by QEMU's blockdev-backup driven by hand."""

import sys
from pathlib import Path

from ..meter import measure, warm
from ..vm import Vm
from .keepmark import Keepmark
from .tool import Tool

PACKAGE = Path(__file__).resolve().parents[2]


class KeepmarkPush(Keepmark):
    """An image store, which QEMU writes. Each image is checked and hashed before it is published."""

    name = "keepmark-push"
    restore = None
    resync = None
    has_chains = True

    def label(self):
        return f"{super().label()} push"

    def place(self):
        return f"images:{self._store}"


class ByHand(Tool):
    """The same job and nothing else."""

    name = "blockdev-backup"
    has_chains = True

    def __init__(self, bench):
        super().__init__(bench)
        self.vm = Vm.with_copy(bench.children, self.folder / "vm", bench.qcow2)
        self._number = 0

    def write(self, dirty):
        self.vm.write(dirty)

    def _push(self, on_last):
        image, base = self._out / f"{self._number + 1}.qcow2", f"{self._number}.qcow2" if on_last else "-"
        new, old = f"hand-{self._number + 1}", f"hand-{self._number}" if on_last else "-"
        self._number += 1
        warm(self.vm.image)
        words = ["env", f"PYTHONPATH={PACKAGE}", sys.executable, "-B", "-m", "bench.by_hand", self.vm.socket, "disk0", image, base, new, old]
        return measure(words, self.folder, [self.vm.pid], written=self._out)

    def full(self):
        self._out = self.empty("store")
        self.vm.forget_bitmaps()
        cost = self._push(on_last=False)
        self.has_base = True
        return cost

    def incremental(self, _dirty):
        return self._push(on_last=True)
