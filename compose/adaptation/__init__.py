"""Adaptation during warm-up: step sizes, masses, trajectory lengths."""
