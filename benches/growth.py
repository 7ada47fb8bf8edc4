"""Measures how keepmark's incrementals grow with disk and repository: `make bench-growth`. See docs/benchmarks.md."""

import os
import sys

from bench import growth, options, report
from bench.process import Children, say, stop_by_signals
from bench.results import Results


def main():
    asked = options.read((growth.TITLE,), ("keepmark",))
    stop_by_signals()
    (asked.folder / "work").mkdir(parents=True, exist_ok=True)
    synthesize = os.environ.get("SYNTHESIZE") or options.ROOT / "target/release/examples/synthesize"
    results = Results()
    with Children(asked.folder / "work") as children:
        try:
            growth.measure(asked, children, results, synthesize)
        except KeyboardInterrupt:
            say("interrupted: what was measured so far follows")
    report.show(results, {growth.TITLE: "An incremental of 64 MiB, scattered over the disk"}, growth.LABELS, {growth.TITLE: growth.SMALL})
    for sentence in growth.verdicts(results):
        print(f"  {sentence}")
    results.save(asked.folder / "growth.json", {"cores": os.cpu_count(), "runs": asked.runs})
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
