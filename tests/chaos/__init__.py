"""Real processes under real faults, judged by one oracle: `python -m tests.chaos --list`."""
