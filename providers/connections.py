"""Which account of an outside system belongs to which organization, and the credential for it.

The environment holds them, as JSON keyed by organization. A job names neither account nor credential, so no
job can reach an account of another organization.
"""

import json
import os

from providers.errors import Refused


def connection(variable: str, organization_id: str, fields: tuple[str, ...]) -> dict[str, str] | None:
    """Return the connection of an organization, or None when it has none.

    Raises Refused when the variable is no JSON object or a field is missing; never shows what it holds.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        connections = json.loads(text)
        found = connections.get(organization_id)
    except (ValueError, AttributeError):
        raise Refused(f"{variable} must be a JSON object keyed by organization") from None
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(found.get(field), str) for field in fields):
        raise Refused(f"{variable}: the connection of {organization_id} must have {', '.join(fields)}")
    return found
