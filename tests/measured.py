"""Whether this is the run that measures coverage (tests/run --coverage).

There, each process that ends writes down what it has run, which takes 60 ms.
"""

from __future__ import annotations

import sys

MEASURED = "coverage" in sys.modules
