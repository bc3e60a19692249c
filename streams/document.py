"""The document worker: document-processing. Run it with `faust -A streams.document worker`."""

from streams.app import worker_app

app = worker_app("document")
