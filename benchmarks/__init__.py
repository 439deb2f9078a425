"""The measured comparisons behind docs/performance.md, each one command; no part of the product.

Rows A to G start whole programs, in turns, and read what those programs write; `profile` and
`variants` look into one process, and `honesty` into the statistics. No test asserts their times.
"""
