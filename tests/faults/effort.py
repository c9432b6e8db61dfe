"""How many faults are tried at random.

A fifth in CI; with KVLAB_FAULTS=1 all that docs/reliability.md counts, with 8 eight times as many.
KVLAB_FAULTS_SEED decides which.
"""

import os

_SHARE = float(os.environ.get("KVLAB_FAULTS", "0.2"))
SEED = int(os.environ.get("KVLAB_FAULTS_SEED", "0"))


def share_of(number):
    """Return how many of a full count are tried."""
    return max(1, round(number * _SHARE))
