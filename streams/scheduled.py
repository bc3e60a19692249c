"""The scheduled worker: maintenance and scheduled. Run it with `faust -A streams.scheduled worker`."""

from streams.app import worker_app

app = worker_app("scheduled")
