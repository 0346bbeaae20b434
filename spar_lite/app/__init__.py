"""What shows and measures: the command line, tables and progress, the benchmark, sweeps."""
