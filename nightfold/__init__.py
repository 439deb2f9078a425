"""The nouns of Nightfold: plain Python that knows nothing of Prefect and works in a bare worker.

Importing this package imports nothing heavy; each noun has a module of its own.
"""

__version__ = "0.1.0"
