"""The columns of every CSV, and the only code that writes, reads or joins them.

One row is one point. Units are in the doc of each column and, where a reader could guess wrong, in its name. A missing
value is an empty cell, never 0. `run` is the key between tables; where a run came from stands only in `runs`, where the
tables of results/reference came from in `provenance`. The tables are declared in `trained`, `measured`, `derived`, `asked`,
`offload` and `device`.

`python -m evals.records.schema results/README.md` rewrites the tables of columns in that file.
"""

from evals.records.schema.column import MISSING, Column
from evals.records.schema.files import TABLES, columns, gather, read, write
from evals.records.schema.manifest import check_seal, seal

__all__ = ["MISSING", "TABLES", "Column", "check_seal", "columns", "gather", "read", "seal", "write"]
