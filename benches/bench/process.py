"""Starts processes and ends them by their ids, whatever happens to us."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class Failed(Exception):
    """A program did not do what the benchmark needs of it."""


def say(text):
    """Progress goes to standard error: standard output has the tables."""
    print(text, file=sys.stderr, flush=True)


def run(argv, **more):
    """Runs a helper to its end outside of any measurement; its standard output."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, **more)
    if done.returncode:
        raise Failed(f"{argv[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def wait_for(ready, what, seconds=30):
    """Polls until `ready()`; fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise Failed(f"{what} did not come within {seconds} s")
        time.sleep(0.02)


def stop_by_signals():
    """A polite end and Ctrl-C do the same, also in a background job, where the shell has Ctrl-C ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


class Children:
    """The servers that we started; each is ended when this is left."""

    def __init__(self, folder):
        self.folder = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        self._stack.__enter__()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    def at_end(self, action, *arguments):
        """Calls this when the benchmark ends, last registered first."""
        self._stack.callback(action, *arguments)

    def start(self, name, argv, **more):
        """Starts a server in a session of its own, so that Ctrl-C reaches us first; its output goes to NAME.log."""
        log = open(self.folder / f"{name}.log", "ab")
        child = subprocess.Popen(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **more
        )
        log.close()
        self.at_end(end, child)
        return child


def end(child, kill=False):
    """Ends one child: politely, and after ten seconds not."""
    if child.poll() is None:
        child.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def terminate(pid):
    """Ends a process that is nobody's child any more, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def command_of(pid):
    """The command line of a process, or nothing."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
