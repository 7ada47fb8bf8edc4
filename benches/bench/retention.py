"""What the rules of retention cost over a long sequence, as `forget --dry-run` runs them."""

import shutil

from .meter import measure
from .process import run, say

TITLE = "retention"
BACKUPS, VM = 10_000, "synthetic-0"
SENTENCE = f"What stays and what goes of {BACKUPS:,} backups of one VM"
LIMIT = 1.0
RULES = ("last 10", "hourly 48", "daily 30", "weekly 26", "monthly 24", "yearly 5")


def measured(options, results, synthesize):
    """A repository with many backups of one VM, an hour apart; then the same question again and again."""
    folder = options.folder / "work" / TITLE
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store, cache, config = folder / "store", folder / "cache", folder / "keepmark.toml"
    config.write_text(f'cache_dir = "{cache}"\n')
    say(f"making {BACKUPS:,} backups of one VM (ten minutes)")
    run([synthesize, store, "bench", cache, "0", str(BACKUPS), "1"])
    rules = [word for rule in RULES for word in f"--keep-{rule}".split()]
    words = [options.keepmark, "--config", config, "--store", store, "--json", "-q", "forget", VM, "--dry-run", *rules]
    for number in range(options.runs):
        cost = measure(words, folder, environment={"KEEPMARK_PASSWORD": "bench"})
        say(f"{number + 1}/{options.runs} {TITLE}: {cost.wall:.2f} s, {cost.cpu:.2f} CPU s")
        results.add(TITLE, TITLE, number, cost)


def verdicts(results):
    """How long it took."""
    if TITLE in results.tools(TITLE):
        wall = results.median(TITLE, TITLE, "wall")
        yield f"retention over {BACKUPS:,} backups: {wall:.2f} s (target < {LIMIT:g} s): {'met' if wall < LIMIT else 'MISSED'}"
