"""Messages handed to a mail server by SMTP (RFC 5321)."""

import os
from dataclasses import dataclass, field
from email.policy import SMTP, SMTPUTF8
from email.utils import formatdate
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

import aiosmtplib

from providers.errors import Refused, Unavailable
from providers.mail.message import Mail, Receipt, mime, sender

Security = Literal["none", "starttls", "tls"]
SECURITY: dict[str, Security] = {"none": "none", "starttls": "starttls", "tls": "tls"}
TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class SmtpMail:
    """One connection a message; 4xx answers and lost connections are Unavailable, 5xx answers Refused."""

    host: str
    port: int
    security: Security
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> Self:
        """Read SMTP_URL, else SMTP_HOST, SMTP_PORT, SMTP_USER, SMTP_PASSWORD and SMTP_TLS.

        SMTP_TLS is `none`, `starttls` or `tls`; in a URL that is `smtp://…?tls=none`, `smtp://` and `smtps://`.
        By default a server on this machine is spoken to in the clear and any other with STARTTLS.
        """
        env = os.environ
        if url := env.get("SMTP_URL"):
            return cls._from_url(url)
        host = env.get("SMTP_HOST") or "localhost"
        security = _security(env.get("SMTP_TLS"), host)
        port = env.get("SMTP_PORT") or _default_port(security)
        if not str(port).isdigit():
            raise Refused(f"SMTP_PORT must be a port number, got {port!r}")
        return cls(host, int(port), security, env.get("SMTP_USER") or None, env.get("SMTP_PASSWORD") or None)

    @classmethod
    def _from_url(cls, url: str) -> Self:
        parts = urlsplit(url)
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise Refused("SMTP_URL must look like smtp://user:password@host:587 or smtps://host:465")
        option = dict(pair.partition("=")[::2] for pair in parts.query.split("&")).get("tls")
        security = "tls" if parts.scheme == "smtps" else _security(option, parts.hostname)
        return cls(
            parts.hostname,
            parts.port or _default_port(security),
            security,
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
        )

    async def send(self, organization_id: str, mail: Mail) -> Receipt:
        """Hand over one message."""
        everyone = mail.recipients
        international = not "".join(everyone).isascii()
        message = mime(mail, SMTPUTF8 if international else SMTP)
        message["Date"] = formatdate(localtime=False)
        try:
            async with self._connection() as server:
                if self.user is not None and self.password is not None:
                    await server.login(self.user, self.password)
                options = ["SMTPUTF8"] if international else []
                problems, _ = await server.sendmail(
                    sender(), list(everyone), message.as_bytes(), mail_options=options
                )
        except aiosmtplib.SMTPRecipientsRefused as error:
            codes = [recipient.code for recipient in error.recipients]
            raise _error(min(codes), "every recipient was turned away") from None
        except aiosmtplib.SMTPResponseException as error:
            raise _error(error.code, error.message) from None
        except aiosmtplib.SMTPNotSupported as error:
            raise Refused(f"the mail server {self.host} lacks a feature: {error}") from None
        except (aiosmtplib.SMTPException, OSError) as error:
            said = f"the mail server {self.host}:{self.port} did not answer: {error}"
            raise Unavailable(said, host=self.host) from error
        return Receipt(
            refused=tuple(a for a, (code, _) in problems.items() if code >= 500),
            deferred=tuple(a for a, (code, _) in problems.items() if code < 500),
        )

    def _connection(self) -> aiosmtplib.SMTP:
        return aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            use_tls=self.security == "tls",
            start_tls=self.security == "starttls",
            timeout=TIMEOUT_SECONDS,
        )


def _error(code: int, message: str) -> Unavailable | Refused:
    # RFC 5321 §4.2.1: 5yz is permanent. What is neither 4yz nor 5yz is a server that lost its way.
    kind = Refused if 500 <= code < 600 else Unavailable
    return kind(f"the mail server answered {code}: {' '.join(message.split())[:200]}")


def _security(value: str | None, host: str) -> Security:
    if not value:
        return "none" if host in ("localhost", "127.0.0.1", "::1") else "starttls"
    if value not in SECURITY:
        raise Refused(f"SMTP_TLS must be none, starttls or tls, got {value!r}")
    return SECURITY[value]


def _default_port(security: Security) -> int:
    return {"none": 25, "starttls": 587, "tls": 465}[security]
