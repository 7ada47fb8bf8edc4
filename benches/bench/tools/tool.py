"""What the cases ask of a program under measurement."""

import shutil


class Tool:
    """A program. What it cannot do stays None: `full`, `incremental(dirty)`, `restore`, `revert(dirty, ...)`, each giving a Cost."""

    name = ""
    full = None
    incremental = None
    restore = None
    revert = None
    resync = None
    has_base = False
    # Whether its images build on each other: then each case begins anew, since a scheme lets no chain grow as long as all cases together do.
    has_chains = False

    def __init__(self, bench):
        self.bench = bench
        self.folder = bench.folder / self.name.replace(" ", "-")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    @staticmethod
    def lacking():
        """Why it cannot be measured here, or None."""
        return None

    def label(self):
        """Name and version, as the tables show it."""
        return self.name

    def write(self, dirty):
        """Brings the changes to its own copy of the disk."""

    def ensure_base(self):
        """A full backup to build on, made outside of the measurements if none is there."""
        if not self.has_base:
            self.full()

    def empty(self, name):
        """A new, empty folder in place of the one of that name."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder
