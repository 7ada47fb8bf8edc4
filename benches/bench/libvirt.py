"""A libvirtd of our own in a private mount namespace, apart from the host's, with one paused domain."""

import os
import shutil

from .process import command_of, run, terminate, wait_for
from .qmp import Monitor

DOMAIN = "bench"
BACKEND = "/machine/peripheral/virtio-disk0/virtio-backend"
QEMU_CONF = """security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
LIBVIRTD_CONF = 'auth_unix_rw = "none"\nlog_outputs = "3:file:/var/log/libvirt/libvirtd.log"\n'
DOMAIN_XML = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='{image}'/>
      <target dev='vda' bus='virtio'/></disk>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='unix:{socket},server=on,wait=off'/></qemu:commandline>
</domain>
"""
# Each of libvirt's folders is one of ours within the namespace.
PLACES = {"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "cache": "/var/cache/libvirt", "log": "/var/log/libvirt"}


def lacking():
    """Why a libvirtd cannot be started here, or None."""
    for program in ("libvirtd", "virsh", "unshare", "nsenter"):
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            return f"{program} is not installed"
    return None if os.geteuid() == 0 else "a libvirtd of our own needs root"


class Domain:
    """The daemon and its one domain; `enter` is put before commands that shall see them."""

    def __init__(self, children, folder, base):
        self._folder = folder
        self.image = folder / "disk.qcow2"
        for name in (*PLACES, "lib/qemu", "log/qemu", "cache/qemu"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base, self.image)
        (folder / "etc/qemu.conf").write_text(QEMU_CONF)
        (folder / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF)
        socket = folder / "own"
        (folder / "domain.xml").write_text(DOMAIN_XML.format(name=DOMAIN, image=self.image, socket=socket))
        self._daemon = children.start("libvirtd", ["unshare", "-m", "--propagation", "private", "sh", "-ec", self._script()])
        self.enter = ("nsenter", f"--mount=/proc/{self._daemon.pid}/ns/mnt", f"--wd={folder}")
        wait_for(self._answers, "libvirtd", 60)
        self._virsh("define", folder / "domain.xml")
        self._virsh("start", "--paused", DOMAIN)
        children.at_end(self._destroy)
        self.pid = int(run([*self.enter, "cat", f"/run/libvirt/qemu/{DOMAIN}.pid"]))
        self.monitor = Monitor(socket)

    def _script(self):
        binds = [f"mount --bind '{self._folder / name}' {place}" for name, place in PLACES.items()]
        places = " ".join([*PLACES.values(), "/run/libvirt"])
        return "\n".join(
            [f"mkdir -p {places}", "mount -t tmpfs tmpfs /run/libvirt", *binds,
             f"exec {shutil.which('libvirtd') or '/usr/sbin/libvirtd'} -f /etc/libvirt/libvirtd.conf -p /run/libvirt/bench.pid"]
        )

    def _virsh(self, *words):
        return run([*self.enter, "virsh", "-c", "qemu:///system", *words])

    def _answers(self):
        try:
            self._virsh("uri")
        except Exception:  # whatever is not ready yet: the wait ends it
            return False
        return True

    @property
    def servers(self):
        """QEMU first: it reads the disk."""
        return self.pid, self._daemon.pid

    def write(self, dirty):
        self.monitor.write_like_a_guest(BACKEND, dirty)

    def forget_checkpoints(self):
        """So that a new chain of backups may begin."""
        for name in self._virsh("checkpoint-list", DOMAIN, "--name").split():
            self._virsh("checkpoint-delete", DOMAIN, name)

    def _destroy(self):
        self.monitor.close()
        try:
            self._virsh("destroy", DOMAIN)
        finally:
            if "qemu-system" in command_of(self.pid):
                terminate(self.pid)
