"""Messages kept as `.eml` artifacts: the offline default."""

import asyncio
import hashlib

from providers.artifacts import artifacts
from providers.mail.message import Mail, Receipt, mime


class FolderMail:
    """Writes each message to `mail/<digest>.eml` of its organization; a repeat writes the same file again."""

    async def send(self, organization_id: str, mail: Mail) -> Receipt:
        name = f"mail/{hashlib.sha256(mail.message_id.encode()).hexdigest()[:32]}.eml"
        content = mime(mail).as_bytes()
        await asyncio.to_thread(artifacts().write, organization_id, name, content)
        return Receipt()
