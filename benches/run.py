"""Measures keepmark beside other programs: `make bench`. Options are environment variables; see docs/benchmarks.md."""

import json
import os
import platform
import sys

from bench import cases, options, report
from bench.process import Children, run, say, stop_by_signals
from bench.results import Results
from bench.tools import KINDS


def about(asked):
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(), "kernel": platform.release(), "disk_mib": asked.disk_mib, "runs": asked.runs,
        "qemu": run(["qemu-img", "--version"]).split()[2],
    }


def main():
    asked = options.read(cases.TITLES, KINDS)
    stop_by_signals()
    (asked.folder / "work").mkdir(parents=True, exist_ok=True)
    results = Results()
    with Children(asked.folder / "work") as children:
        bench = cases.Bench(asked, children, results, KINDS)
        allocated = sum(length for _, length in bench.data) // options.MIB
        try:
            bench.run()
        except KeyboardInterrupt:
            say("interrupted: what was measured so far follows")
        labels = {name: tool.label() for name, tool in bench.tools.items()}
    told = about(asked)
    print(f"{asked.disk_mib} MiB disk with {allocated} MiB of data; medians of n runs ({asked.runs} asked for), ratios paired; {json.dumps(told)}")
    report.show(results, cases.TITLES, labels, cases.REFERENCE)
    for name, reason in bench.absent.items():
        print(f"not measured: {name}: {reason}")
    results.save(asked.folder / "results.json", told)
    return 1 if any(tool.startswith("keepmark") for _, tool in results.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
