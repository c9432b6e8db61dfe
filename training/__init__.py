"""Budget, schedule, optimizer and the training loop."""

import time

# The start of the process, but for the first moments of Python: an entry point imports its settings
# from here before anything slow. `trainer.max_minutes` counts from it.
STARTED_AT = time.monotonic()
