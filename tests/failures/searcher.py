"""A search's driver, as the tests of failures start, kill and start it again: `python searcher.py STORE DIRECTORY`."""

from __future__ import annotations

import os
import sys

from recollect import cluster
from recollect.config import Run, preset
from recollect.data.store import Store
from recollect.search.tune import Search, search
from recollect.training.session import suit

STEPS, EVERY = 24, 3
TRIALS = max(4, int(os.environ.get("KILLS", "6")) * 6 // 5)  # so many that the search is not over before the kills are


def run_on(store: Store) -> Run:
    """A run that takes seconds, and is evaluated (and so kept) often."""
    small = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 1, "generator_blocks": 1}
    made = preset(
        "mguit:tiny",
        data={"store": store.uri, "size": 32, "domains": ("sunny", "night")},
        model={**small, "memory": {"value_dim": 8}},
        engine={"steps": STEPS, "batch_size": 2, "evaluate_every": EVERY, "log_every": 100, "threads": 1},
        evaluation={"pictures": 2},
    )
    return suit(made, store)


def main() -> None:
    """Search, or go on with the search: every trial to its end."""
    uri, directory = sys.argv[1:]
    try:
        cluster.connect("local", cpus=2, dashboard=False)
        print("folder", cluster._folders[0], flush=True)
        plan = Search(run_on(Store.open(uri)), ("weights.con_k",), TRIALS, directory, scheduler="none", retries=-1)
        print("finished", len(search(plan, resume=True).table), flush=True)
    finally:
        cluster.disconnect()


if __name__ == "__main__":
    main()
