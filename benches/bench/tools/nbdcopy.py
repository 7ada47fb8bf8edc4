"""nbdcopy from a qemu-nbd of its own: the plain copy that everything is compared with."""

from ..meter import measure, warm
from ..process import run, wait_for
from .tool import Tool


class Nbdcopy(Tool):
    """Reads the base image, which nothing writes to, through one long-lived qemu-nbd."""

    target = ""

    def __init__(self, bench):
        super().__init__(bench)
        self._socket = self.folder / "nbd"
        self._server = bench.children.start(
            f"qemu-nbd-{self.folder.name}",
            ["qemu-nbd", "-r", "-t", "--shared=8", "-f", "qcow2", "-k", self._socket, bench.qcow2],
        )
        wait_for(self._socket.exists, "qemu-nbd's socket")

    def label(self):
        return f"nbdcopy {run(['nbdcopy', '--version']).split()[1]} {self.target}"

    def _copy(self, to):
        warm(self.bench.qcow2)
        return measure(["nbdcopy", f"nbd+unix:///?socket={self._socket}", to], self.folder, [self._server.pid])


class ToFile(Nbdcopy):
    """The reference."""

    name = "nbdcopy"
    target = "to a file"

    def full(self):
        copy = self.empty("copy") / "disk.raw"
        cost = self._copy(copy)
        copy.unlink()
        return cost

    restore = full


class ToNull(Nbdcopy):
    """What reading alone costs."""

    name = "nbdcopy-null"
    target = "to null"

    def full(self):
        return self._copy("null:")

    resync = full
