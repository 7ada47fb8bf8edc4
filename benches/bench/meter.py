"""Measures one command: wall time to the synced target, CPU seconds, peak memory, bytes read and written."""

import ctypes
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .process import Failed

TICK = os.sysconf("SC_CLK_TCK")
LIMIT_SECONDS = 3600
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Cost:
    """What one run cost. Times in seconds, sizes in bytes."""

    wall: float
    cpu_client: float
    cpu_server: float
    rss_client: int
    rss_server: int
    read: int
    written: int
    others: float  # cores that everybody else on this machine kept busy meanwhile
    output: str = ""

    @property
    def cpu(self):
        return self.cpu_client + self.cpu_server

    def plain(self):
        """For results.json, without the output."""
        return {key: value for key, value in asdict(self).items() if key != "output"}


def sync(folder):
    """Waits until the file system of `folder` has everything."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(handle):
            raise OSError(ctypes.get_errno(), f"syncfs of {folder}")
    finally:
        os.close(handle)


def stored(path):
    """Bytes that a file or folder takes: holes and what lies beyond the end of a file are not counted."""
    path = Path(path)
    if not path.exists():
        return 0
    files = [path] if path.is_file() else (Path(root) / name for root, _, names in os.walk(path) for name in names)
    return sum(min(stat.st_size, stat.st_blocks * 512) for stat in map(os.lstat, files))


def warm(path):
    """Reads a file into the page cache, holes skipped."""
    with open(path, "rb", buffering=0) as file:
        size, place, buffer = os.fstat(file.fileno()).st_size, 0, bytearray(4 << 20)
        while place < size:
            try:
                start = os.lseek(file.fileno(), place, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            os.lseek(file.fileno(), start, os.SEEK_SET)
            while start < end and (got := file.readinto(buffer)):
                start += got
            place = max(end, start)


class Server:
    """Another process that works for the client: what it spends between `reset` and the readings."""

    def __init__(self, pid):
        self.pid = pid
        self.cpu_before, self.read_before = self.cpu_total(), self.read_total()
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak of its memory starts again

    def cpu_total(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def read_total(self):
        return io_of(self.pid)

    def cpu(self):
        return self.cpu_total() - self.cpu_before

    def read(self):
        return self.read_total() - self.read_before

    def rss(self):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0


def io_of(pid):
    """Bytes that a process and its reaped children got from read calls."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    return 0


def busy():
    """Seconds that all cores together have been busy since the machine started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICK


def await_end(child):
    """Waits for a child; what it read and the rest of its usage. Whatever stops us stops it and its children too."""
    timer = threading.Timer(LIMIT_SECONDS, os.killpg, (child.pid, signal.SIGKILL))
    timer.start()
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    read = io_of(child.pid)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return read, usage


def measure(argv, target, servers=(), environment=None, written=None):
    """Runs a command to its end and says what it cost.

    `target` is where it writes: its file system is synced within the measured time. `servers` are the ids of processes that
    work for it, the one that reads the disk first; without any, the client's own reads count. `written` is the path whose
    growth counts as written (default: `target`).

    The client is a child of /usr/bin/time, whose own memory is small: Linux counts in a process's peak what its parent had when
    it started it, which for us would be hundreds of MiB.
    """
    written = Path(written or target)
    place = Path(target) if Path(target).is_dir() else Path(target).parent
    sync(place)
    before, watched, busy_before = stored(written), [Server(pid) for pid in servers], busy()
    with tempfile.TemporaryFile() as output, tempfile.NamedTemporaryFile("r") as peak:
        start = time.monotonic()
        child = subprocess.Popen(
            ["/usr/bin/time", "-f", "%M", "-o", peak.name, "--", *(str(word) for word in argv)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        client_read, usage = await_end(child)
        sync(place)
        wall = time.monotonic() - start
        output.seek(0)
        text = output.read().decode(errors="replace")
        rss = int(peak.read().split()[-1]) * 1024
    if child.returncode:
        raise Failed(f"{Path(argv[0]).name} ended with {child.returncode}: {text.strip()[-600:]}")
    client, server = usage.ru_utime + usage.ru_stime, sum(one.cpu() for one in watched)
    return Cost(
        wall=wall, cpu_client=client, cpu_server=server,
        rss_client=rss, rss_server=max((one.rss() for one in watched), default=0),
        read=watched[0].read() if watched else client_read, written=stored(written) - before,
        others=max(0.0, (busy() - busy_before - client - server) / wall), output=text,
    )
