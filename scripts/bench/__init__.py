"""Benchmarks: each compares side by side in one run, names the machine, prints a table and writes JSON."""
