"""A push by hand: `python3 -m bench.by_hand SOCKET NODE IMAGE BASE|- NEW OLD|-` makes IMAGE by QEMU's own blockdev-backup.

A bitmap NEW is begun, the bitmap OLD of the last backup is copied, and a job copies what it says into an image on BASE, or everything
where both are `-`. One transaction; nothing is checked, nothing is recorded, the guest's writes wait for the image.
"""

import os
import sys
import time
from pathlib import Path

from .process import Failed
from .qmp import Monitor

DELTA, TARGET, STORAGE, JOB = "hand-delta", "hand-target", "hand-storage", "hand-job"


def wait(monitor, job):
    """Until a job has ended; then it is dismissed."""
    while True:
        found = next(one for one in monitor.execute("query-jobs") if one["id"] == job)
        if found["status"] == "concluded":
            break
        time.sleep(0.005)
    monitor.execute("job-dismiss", id=job)
    if "error" in found:
        raise Failed(found["error"])


def create(monitor, image, size, base):
    """The image's file, with a header that says what lies below."""
    Path(image).touch()
    monitor.execute("blockdev-add", driver="file", filename=image, **{"node-name": STORAGE})
    options = {"driver": "qcow2", "file": STORAGE, "size": size}
    if base != "-":
        options |= {"backing-file": base, "backing-fmt": "qcow2"}
    monitor.execute("blockdev-create", options=options, **{"job-id": JOB})
    wait(monitor, JOB)
    monitor.execute("blockdev-del", **{"node-name": STORAGE})
    monitor.execute("blockdev-add", driver="qcow2", file={"driver": "file", "filename": image}, backing=None, **{"node-name": TARGET})


def actions(node, new, old):
    """The transaction."""
    add = {"type": "block-dirty-bitmap-add", "data": {"node": node, "name": new, "persistent": True}}
    job = {"job-id": JOB, "device": node, "target": TARGET, "auto-dismiss": False, "sync": "full"}
    if old == "-":
        return [add, {"type": "blockdev-backup", "data": job}]
    delta = {"node": node, "name": DELTA, "persistent": False, "disabled": True}
    merge = {"node": node, "target": DELTA, "bitmaps": [old]}
    job |= {"sync": "bitmap", "bitmap": DELTA, "bitmap-mode": "never"}
    return [add, {"type": "block-dirty-bitmap-add", "data": delta}, {"type": "block-dirty-bitmap-merge", "data": merge},
            {"type": "blockdev-backup", "data": job}]


def main(socket, node, image, base, new, old):
    monitor = Monitor(socket)
    size = next(block["inserted"]["image"]["virtual-size"] for block in monitor.execute("query-block") if "inserted" in block)
    create(monitor, image, size, base)
    monitor.execute("transaction", actions=actions(node, new, old))
    wait(monitor, JOB)
    monitor.execute("blockdev-del", **{"node-name": TARGET})
    if old != "-":
        monitor.execute("block-dirty-bitmap-remove", node=node, name=DELTA)
        monitor.execute("block-dirty-bitmap-remove", node=node, name=old)
    handle = os.open(image, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    monitor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
