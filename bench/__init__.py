"""Measurements: each prints JSON lines and compares within one run."""
