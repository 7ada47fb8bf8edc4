"""A QEMU of our own without a guest: one qcow2 disk on virtio-blk, two monitors, paused from the start."""

import shutil

from .process import end, wait_for
from .qmp import Monitor

UUID = "6b6d0000-0000-4000-8000-00000000be7c"
BACKEND = "/machine/peripheral/vda/virtio-backend"


class Vm:
    """One VM; its disk is `image`."""

    def __init__(self, children, folder, image, name="bench"):
        self._children, self._folder, self.image, self.name = children, folder, image, name
        folder.mkdir(parents=True, exist_ok=True)
        self.socket, self._own_socket = folder / "qmp", folder / "own"
        self.boot()

    @classmethod
    def with_copy(cls, children, folder, base):
        """A VM whose disk is a copy of `base`."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base, folder / "disk.qcow2")
        return cls(children, folder, folder / "disk.qcow2")

    def boot(self):
        for socket in (self.socket, self._own_socket):
            socket.unlink(missing_ok=True)
        self._child = self._children.start(
            f"qemu-{self._folder.name}",
            ["qemu-system-x86_64", "-name", self.name, "-uuid", UUID, "-machine", "pc", "-accel", "tcg", "-m", "64", "-S",
             "-nodefaults", "-display", "none", "-qmp", f"unix:{self.socket},server=on,wait=off",
             "-qmp", f"unix:{self._own_socket},server=on,wait=off",
             "-blockdev", f"driver=qcow2,node-name=disk0,discard=unmap,file.driver=file,file.discard=unmap,file.filename={self.image}",
             "-device", "virtio-blk-pci,id=vda,drive=disk0"],
        )
        wait_for(self._own_socket.exists, "QEMU's monitor")
        self.monitor = Monitor(self._own_socket)

    @property
    def pid(self):
        return self._child.pid

    def write(self, dirty):
        self.monitor.write_like_a_guest(BACKEND, dirty)

    def forget_bitmaps(self):
        """Removes every named bitmap: the next backup into a new store finds a VM as it was."""
        for node, bitmap in self.monitor.bitmaps():
            self.monitor.execute("block-dirty-bitmap-remove", node=node, name=bitmap["name"])

    def kill(self):
        """As by a power cut."""
        self.monitor.close()
        end(self._child, kill=True)

    def stop(self):
        self.monitor.close()
        end(self._child)

    def export(self, socket):
        """Serves the disk as it is now over NBD, for a comparison; gives its address for qemu-img."""
        self.monitor.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(socket)}})
        self.monitor.execute("block-export-add", type="nbd", id="bench", **{"node-name": "disk0"}, name="disk0")
        return f"nbd+unix:///disk0?socket={socket}"

    def unexport(self):
        self.monitor.execute("nbd-server-stop")
