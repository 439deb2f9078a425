"""The measured comparisons behind docs/performance.md, each one command; no part of the product.

They start whole programs, in turns, and read what those programs write; they assert nothing.
"""
