"""One module per suite, each with ``run(out=None, quick=False, seeds=5, …) -> Report``."""
