"""What was measured: costs by case, program and run, and the medians and paired ratios of them."""

import json
import statistics


class Results:
    """Runs with the same number were made one after the other, so that their ratio is meant."""

    def __init__(self):
        self._costs = {}  # case -> tool -> run -> Cost
        self._dirty = {}  # case -> bytes that each run changed
        self.failures = {}  # (case, tool) -> reason

    def add(self, case, tool, number, cost):
        self._costs.setdefault(case, {}).setdefault(tool, {})[number] = cost

    def fail(self, case, tool, reason):
        self.failures[case, tool] = str(reason)

    def dirtied(self, case, length):
        self._dirty[case] = length

    def cases(self):
        return list(dict.fromkeys([*self._costs, *(case for case, _ in self.failures)]))

    def tools(self, case):
        return list(self._costs.get(case, ()))

    def values(self, case, tool, kind):
        """The figure of each run, by its number."""
        runs = self._costs.get(case, {}).get(tool, {})
        if kind == "read/dirty":
            return {number: cost.read / self._dirty[case] for number, cost in runs.items()}
        return {number: getattr(cost, kind) for number, cost in runs.items()}

    def median(self, case, tool, kind):
        return statistics.median(self.values(case, tool, kind).values())

    def ratio(self, case, tool, other, kind):
        """Median over the runs of tool / other, or None where they have no run in common."""
        mine, theirs = self.values(case, tool, kind), self.values(case, other, kind)
        pairs = [mine[number] / theirs[number] for number in mine if theirs.get(number)]
        return statistics.median(pairs) if pairs else None

    def save(self, path, about):
        """Everything as JSON."""
        costs = {
            case: {tool: [cost.plain() for cost in runs.values()] for tool, runs in tools.items()}
            for case, tools in self._costs.items()
        }
        failures = [{"case": case, "tool": tool, "reason": reason} for (case, tool), reason in self.failures.items()]
        path.write_text(json.dumps({"about": about, "dirty": self._dirty, "costs": costs, "failures": failures}, indent=1))
