"""Calls train_in_forks.py, and reads back what became of each case."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("train_in_forks.py")


def runner(folder, arguments, **environment):
    """Return a function that trains as several cases say, one after the other.

    Args:
        folder: Of the runs, which the function has as an attribute, and of their output.
        arguments: Of the command, whatever the case.
        environment: Variables added to those there are; the function takes more of them.
    """

    def run(cases, **more):
        cases = [
            case
            | {
                "arguments": [*arguments, f"runs_dir={folder}", f"run_name={case['run']}"],
                **{name: str(folder / f"{n}.{name}") for name in ("out", "err", "note")},
            }
            for n, case in enumerate(cases)
        ]
        for case in cases:
            Path(case["note"]).unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, str(SCRIPT)],
            input=json.dumps(cases),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment | more,
        )
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout)
        for case, result in zip(cases, results, strict=True):
            for name in ("out", "err"):
                path = Path(case[name])
                result[name] = path.read_text() if path.exists() else ""
        return results

    run.folder = folder
    return run
