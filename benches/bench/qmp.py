"""A client of QEMU's monitor: one request, one reply, events ignored."""

import json
import socket

from .process import Failed


class Monitor:
    """One connection to a QMP socket."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(120)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._file.readline()
        self.execute("qmp_capabilities")

    def close(self):
        self._file.close()
        self._socket.close()

    def execute(self, command, **arguments):
        """The command's return value."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while line := self._file.readline():
            reply = json.loads(line)
            if "error" in reply:
                raise Failed(f"QEMU refused {command}: {reply['error'].get('desc')}")
            if "return" in reply:
                return reply["return"]
        raise Failed(f"QEMU closed its monitor during {command}")

    def human(self, line):
        """A command of the human monitor; errors of qemu-io go to QEMU's standard output, not here."""
        return self.execute("human-monitor-command", **{"command-line": line})

    def bitmaps(self):
        """(node, bitmap) of every named bitmap on a device's node."""
        return [
            (block["inserted"]["node-name"], bitmap)
            for block in self.execute("query-block") if "inserted" in block
            for bitmap in block["inserted"].get("dirty-bitmaps", ()) if bitmap.get("name")
        ]

    def write_like_a_guest(self, backend, dirty):
        """Writes the runs of a dirty set through the device `backend` (its QOM path), as its guest would."""
        before = {bitmap["name"] for _, bitmap in self.bitmaps()}
        for run in dirty.runs:
            self.human(f'qemu-io -d {backend} "write -q -s {run.file} {run.offset} {run.length}"')
        recorded = [bitmap["count"] for _, bitmap in self.bitmaps() if bitmap["recording"]]
        if before and dirty.length and max(recorded, default=0) < dirty.length:
            raise Failed(f"QEMU recorded {max(recorded, default=0)} of {dirty.length} dirty bytes; see its log")
