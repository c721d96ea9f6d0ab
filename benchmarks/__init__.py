"""Timings and side-by-side comparisons; `python -m benchmarks` lists them."""
