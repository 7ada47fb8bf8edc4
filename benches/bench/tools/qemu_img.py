"""qemu-img convert of the image itself: no server, no encryption, no history."""

from ..meter import measure, warm
from ..process import run
from .tool import Tool


class Convert(Tool):
    """To an uncompressed qcow2."""

    name = "qemu-img"
    options = ()

    def label(self):
        version = run(["qemu-img", "--version"]).split()[2]
        return " ".join((f"qemu-img {version} convert", *self.options[:1]))

    def full(self):
        copy = self.empty("copy") / "disk.qcow2"
        warm(self.bench.qcow2)
        cost = measure(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", *self.options, self.bench.qcow2, copy], self.folder)
        copy.unlink()
        return cost


class ConvertCompressed(Convert):
    """To one compressed with zstd."""

    name = "qemu-img-c"
    options = ("-c", "-o", "compression_type=zstd")
