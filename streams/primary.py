"""The primary worker: critical, reports, emails, webhooks and integrations.

Run it with `faust -A streams.primary worker`.
"""

from streams.app import worker_app

app = worker_app("primary")
