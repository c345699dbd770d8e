"""Targets with known truth, metrics, comparisons and suites."""
