"""The ai worker: ai-processing. Run it with `faust -A streams.ai worker`."""

from streams.app import worker_app

app = worker_app("ai")
