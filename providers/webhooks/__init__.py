"""Outgoing webhooks, signed as https://www.standardwebhooks.com asks for."""

from providers.webhooks.address import check_url
from providers.webhooks.delivery import event_body, post
from providers.webhooks.signing import secret_of, sign

__all__ = ["check_url", "event_body", "post", "secret_of", "sign"]
