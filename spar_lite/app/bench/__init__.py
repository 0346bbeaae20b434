"""The benchmark: this engine beside plain ``generate``, the roofline, and the training steps.

One function, one run, one dictionary of figures; anyone can repeat it with ``spar-lite bench``.
"""

from spar_lite.app.bench.measure import Bench, bench
from spar_lite.app.bench.shapes import SHAPES, write_shape

__all__ = ["SHAPES", "Bench", "bench", "write_shape"]
