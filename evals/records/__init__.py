"""What every floor reads and writes: errors, tables, runs, corpora, and where a number comes from."""
