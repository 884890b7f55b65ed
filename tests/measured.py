"""Whether this is the run that measures coverage (tests/run --coverage).

In that run each process writes its coverage data when it ends, which takes 60 ms.
"""

from __future__ import annotations

import sys

MEASURED = "coverage" in sys.modules
