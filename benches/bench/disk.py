"""Makes the disk that everything is measured on: ext4 with real files and random bytes, sparse, as raw and as qcow2."""

import json
import os
import random
import shutil
from pathlib import Path

from .options import MIB
from .process import run, say

FILES_SHARE = 2560 / 8192
RANDOM_SHARE = 1024 / 8192
# Where a small machine finds more real files when /usr has not enough.
SOURCES = ("/usr", "/opt", str(Path.home() / ".rustup"), str(Path.home() / ".cargo"))


def ready(options):
    """The raw and the qcow2 image, made if they are not there from an earlier run."""
    folder = options.folder / f"disk-{options.disk_mib}"
    raw, qcow2, made = folder / "base.raw", folder / "base.qcow2", folder / "made"
    if not made.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        say(f"making the disk ({options.disk_mib} MiB) in {folder}")
        fill(folder / "files", options.disk_bytes)
        with open(raw, "wb") as file:
            file.truncate(options.disk_bytes)
        run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", folder / "files", raw])
        shutil.rmtree(folder / "files")
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2])
        made.touch()
    return raw, qcow2


def fill(folder, disk_bytes):
    """Copies real files until their share is reached, then writes random ones."""
    folder.mkdir()
    wanted = int(disk_bytes * FILES_SHARE)
    for number, path in enumerate(real_files()):
        size = path.lstat().st_size
        if size <= wanted:
            (folder / f"{number // 1000:03}").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / f"{number // 1000:03}" / f"{number:06}")
            wanted -= size
        if wanted < 4096:
            break
    dice = random.Random("keepmark bench")
    for number in range(max(1, int(disk_bytes * RANDOM_SHARE) // (16 * MIB))):
        (folder / f"random-{number:04}").write_bytes(dice.randbytes(16 * MIB))


def real_files():
    """Ordinary files of this host, in a fixed order."""
    for source in SOURCES:
        for root, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(root) / name
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    yield path


def data_extents(qcow2):
    """(offset, length) of what the image has allocated."""
    mapped = json.loads(run(["qemu-img", "map", "--output=json", "-U", qcow2]))
    return [(piece["start"], piece["length"]) for piece in mapped if piece["data"]]
