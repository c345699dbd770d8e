"""The parts of :func:`boltzmix.models.fit`: batches, precision, processes, checkpoints, records, sheets.

One idea each; ``models/fit.py`` is the loop that uses them.
"""
