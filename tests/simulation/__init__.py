"""The core in a simulated world: broker, Redis, clocks and chance are made up from a seed, so that a run repeats.

docs/explanation/simulation.md says what is simulated and what is real.
"""
