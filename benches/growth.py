"""Measures how keepmark's work grows with disk, repository and sequence: `make bench-growth`. See docs/benchmarks.md."""

import os
import sys

from bench import growth, options, report, retention
from bench.process import Children, say, stop_by_signals
from bench.results import Results


def main():
    asked = options.read((growth.TITLE, retention.TITLE), ("keepmark",))
    stop_by_signals()
    (asked.folder / "work").mkdir(parents=True, exist_ok=True)
    synthesize = os.environ.get("SYNTHESIZE") or options.ROOT / "target/release/examples/synthesize"
    results = Results()
    with Children(asked.folder / "work") as children:
        try:
            if growth.TITLE in asked.cases:
                growth.measure(asked, children, results, synthesize)
            if retention.TITLE in asked.cases:
                retention.measured(asked, results, synthesize)
        except KeyboardInterrupt:
            say("interrupted: what was measured so far follows")
    titles = {growth.TITLE: "An incremental of 64 MiB, scattered over the disk", retention.TITLE: retention.SENTENCE}
    report.show(results, titles, {**growth.LABELS, retention.TITLE: "keepmark forget --dry-run"}, {growth.TITLE: growth.SMALL})
    for sentence in (*growth.verdicts(results), *retention.verdicts(results)):
        print(f"  {sentence}")
    results.save(asked.folder / "growth.json", {"cores": os.cpu_count(), "runs": asked.runs})
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
