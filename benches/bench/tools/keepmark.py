"""keepmark on a running QEMU without a guest."""

import json
import os
import shutil

from ..meter import measure, warm
from ..process import Failed, run
from ..vm import Vm
from .tool import Tool


class Keepmark(Tool):
    """Encrypted, compressed, deduplicated."""

    name = "keepmark"

    def __init__(self, bench):
        super().__init__(bench)
        self.program = bench.options.keepmark
        self.vm = Vm.with_copy(bench.children, self.folder / "vm", bench.qcow2)
        self._environment = {"KEEPMARK_PASSWORD": "bench"}
        self._config = self.folder / "keepmark.toml"
        self.cache = self.folder / "cache"
        self._config.write_text(f'cache_dir = "{self.cache}"\n')
        self._store = self.folder / "store"

    def label(self):
        return run([self.program, "--version"]).strip()

    def write(self, dirty):
        self.vm.write(dirty)

    def _keepmark(self):
        """The program with a configuration of our own: nothing of the host's is read, and the cache lies in our folder."""
        return self.program, "--config", self._config

    def place(self):
        """The store as the program is told of it."""
        return str(self._store)

    def new_store(self):
        shutil.rmtree(self._store, ignore_errors=True)
        self.vm.forget_bitmaps()
        measure([*self._keepmark(), "init", self.place()], self.folder, environment=self._environment)

    def backup(self, kinds):
        """Measures one backup; fails if it was of none of these kinds."""
        warm(self.vm.image)
        cost = measure(
            [*self._keepmark(), "--store", self.place(), "--json", "-q", "backup", f"qmp:{self.vm.socket}"],
            self.folder, [self.vm.pid], self._environment, written=self._store,
        )
        self.told = finished(cost.output)
        if self.told["kind"] not in kinds:
            raise Failed(f"keepmark made a {self.told['kind']} backup: {self.told['reason']}")
        self.has_base = True
        return cost

    def full(self):
        self.new_store()
        return self.backup(("full",))

    def incremental(self, _dirty):
        return self.backup(("incremental", "differential"))

    def resync(self):
        """After a kill of QEMU nothing that its bitmaps knew is left."""
        self.ensure_base()
        self.vm.kill()
        self.vm.boot()
        return self.backup(("resync",))

    def restore(self, verify=False):
        out = self.empty("restored")
        cost = measure(
            [*self._keepmark(), "--store", self.place(), "-q", "restore", f"{self.vm.name}@latest", "--to", out],
            self.folder, environment=self._environment, written=out,
        )
        if verify:
            self._compare(next(out.glob("*.raw")))
        shutil.rmtree(out)
        return cost

    def revert(self, dirty, safe=False, verify=False):
        """Measures going back to the last backup; fails if it wrote much more than what was changed."""
        warm(self.vm.image)
        cost = measure(
            [*self._keepmark(), "--store", self._store, "--json", "-q", "revert", f"qmp:{self.vm.socket}", self.told["backup"],
             *([] if safe else ["--no-safety-backup"])],
            self.folder, [self.vm.pid], self._environment, written=self._store,
        )
        disks = finished(cost.output)["disks"]
        wrote = sum(disk["written_bytes"] + disk["zeroed_bytes"] for disk in disks)
        if wrote > dirty.length * 1.1:
            raise Failed(f"keepmark wrote {wrote} bytes to take back {dirty.length}")
        if verify:
            out = self.empty("restored")
            environment = {**os.environ, **self._environment}
            run([*self._keepmark(), "--store", self._store, "-q", "restore", self.told["backup"], "--to", out], env=environment)
            self._compare(next(out.glob("*.raw")))
            shutil.rmtree(out)
        return cost

    def _compare(self, restored):
        """The VM is paused, so that its disk is still what the newest backup holds."""
        address = self.vm.export(self.folder / "compare")
        try:
            run(["qemu-img", "compare", "-f", "raw", "-F", "raw", restored, address])
        finally:
            self.vm.unexport()


def finished(output):
    """The last event of a backup."""
    for line in reversed(output.splitlines()):
        if line.startswith("{") and (event := json.loads(line)).get("event") == "finished":
            return event
    raise Failed(f"keepmark did not say how it finished: {output[-300:]}")
