"""Whether two results folders agree (`evals.compare`): findings, equivalence on unequal hardware, and how it is told."""
