"""Prints results as tables that a person reads: medians, ratios, and the targets beside them."""

from .options import MIB
from .targets import TARGETS

HEADER = ("", "n", "wall s", "[min-max]", "x ref", "CPU s", "client", "server", "x ref", "RSS MiB", "server", "read MiB", "written", "others")
FORMAT = "{:<32} {:>2} {:>7} {:>13} {:>6} {:>6} {:>7} {:>7} {:>6} {:>8} {:>7} {:>9} {:>8} {:>7}"


def show(results, titles, labels, reference):
    """All cases. `reference` says by case which program the ratios are against."""
    for case in results.cases():
        print(f"\n{titles[case]}")
        print(FORMAT.format(*HEADER))
        for tool in results.tools(case):
            print(FORMAT.format(labels[tool], *row(results, case, tool, reference.get(case))))
        for (failed, tool), reason in results.failures.items():
            if failed == case:
                print(f"  {tool}: {reason}")
        for target in TARGETS:
            if target.case == case:
                print(f"  {verdict(results, target)}")


def row(results, case, tool, reference):
    """The cells of one program."""
    def middle(kind):
        return results.median(case, tool, kind)

    def against(kind):
        ratio = results.ratio(case, tool, reference, kind) if reference else None
        return "-" if ratio is None else f"{ratio:.2f}"

    walls = results.values(case, tool, "wall").values()
    return (
        len(walls), f"{middle('wall'):.2f}", f"[{min(walls):.2f}-{max(walls):.2f}]", against("wall"),
        f"{middle('cpu'):.2f}", f"{middle('cpu_client'):.2f}", f"{middle('cpu_server'):.2f}", against("cpu"),
        f"{middle('rss_client') / MIB:.0f}", f"{middle('rss_server') / MIB:.0f}",
        f"{middle('read') / MIB:.0f}", f"{middle('written') / MIB:.1f}", f"{middle('others'):.2f}",
    )


def verdict(results, target):
    """The target, what was measured, and whether it is met."""
    if target.tool not in results.tools(target.case) or (target.other and target.other not in results.tools(target.case)):
        return f"target: {target.sentence()}: not measured"
    if target.other is None:
        value = results.median(target.case, target.tool, target.kind)
    elif target.at_least:
        value = results.ratio(target.case, target.other, target.tool, target.kind)
    else:
        value = results.ratio(target.case, target.tool, target.other, target.kind)
    met = value >= target.limit if target.at_least else value <= target.limit
    shown = f"{value / MIB:.0f} MiB" if target.kind == "rss_client" else f"{value:.2f}"
    return f"target: {target.sentence()}: {shown}, {'met' if met else 'MISSED'}"
