"""How fast: what the framework costs over the bare work, rates beside the peers', and how cost grows.

Each section of ``python -m boltzmix bench speed`` has a file here. All times are CPU seconds of the process on one
thread; both sides of a ratio are timed in turns within one run.
"""
