"""Where the tests' time goes, by area: from a report of pytest to the table of tests/README.md.

.ci/run --junit-xml=/tmp/tests.xml
python tests/durations.py /tmp/tests.xml
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

# Seconds of all tests of a folder, fast and slow, in one process; .ci/run uses two.
BUDGET = {
    "benchmarks": 60,
    "commands": 20,
    "comparing": 30,
    "data": 220,
    "faults": 520,
    "files": 5,
    "guards": 5,
    "harness": 30,
    "interop": 100,
    "measuring": 60,
    "modeling": 100,
    "reporting": 30,
    "tracking": 80,
    "training": 330,
    "whole commands": 600,
}


def area(classname: str) -> str:
    """Return the folder that a test is in; what is in none runs whole commands."""
    parts = classname.split(".")
    return parts[1] if parts[1] in BUDGET else "whole commands"


def main(report: Path) -> None:
    """Print the table."""
    tests: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        where = area(case.attrib["classname"])
        tests[where] += 1
        seconds[where] += float(case.attrib["time"])
    print("| area | tests | seconds | budget |")
    print("|---|---:|---:|---:|")
    for where, budget in BUDGET.items():
        print(f"| {where} | {tests[where]:,} | {seconds[where]:.0f} | {budget} |")
    total, budget = seconds.total(), sum(BUDGET.values())
    print(f"| all | {tests.total():,} | {total:.0f} | {budget:,} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
