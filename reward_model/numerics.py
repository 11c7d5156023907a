"""Matrix products on the CPU whose rows do not depend on how many rows there are.

MKL splits the inner dimension over threads when it is large against the number of rows: with two
threads a [M, 1536] × [1536, 384] product changed its bits between M = 192 and M = 256. In its
strict reproducible mode it does not; the order of every sum is then fixed. The mode is read from
the environment at the first product of the process, so it is set when this package is imported.
"""

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
