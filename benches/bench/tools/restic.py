"""restic on the raw file: what one does without QEMU's bitmaps."""

import shutil

from ..meter import measure, warm
from ..process import run
from .tool import Tool


class Restic(Tool):
    """Reads the whole file every time."""

    name = "restic"

    def __init__(self, bench):
        super().__init__(bench)
        self._disk = self.folder / "disk.raw"
        run(["cp", "--sparse=always", bench.raw, self._disk])
        self._environment = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(self.folder / "cache")}

    @staticmethod
    def lacking():
        return None if shutil.which("restic") else "restic is not installed"

    def label(self):
        return f"restic {run(['restic', 'version']).split()[1]} on the raw file"

    def write(self, dirty):
        dirty.write_to(self._disk)

    def _restic(self, *words, store, written=None):
        return measure(["restic", "-q", "-r", store, *words], self.folder, environment=self._environment, written=written or store)

    def full(self):
        store = self._store = self.empty("store")
        self._restic("init", store=store)
        self.has_base = True
        return self.incremental()

    def incremental(self, _dirty=None):
        warm(self._disk)
        return self._restic("backup", self._disk, store=self._store)

    def restore(self):
        out = self.empty("restored")
        cost = self._restic("restore", "latest", "--target", out, store=self._store, written=out)
        shutil.rmtree(out)
        return cost
