"""The URL of a protected database, its password apart: no finding, record, log or process list may show that."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

_SECRET_WORDS = ("password", "passwd", "pwd", "secret", "token", "key")
_UNREADABLE = "its URL cannot be read; special characters in a password are written as %XX, such as %2F for a /"


class DatabaseUrl:
    """A URL in its parts.

    Attributes:
        whole: As it was written; for who connects, never to be shown.
        kind: `sqlite`, `postgresql`, … without a driver.
        without_password: The same without driver and password.
        password: Decoded; None if the URL has none.

    Raises:
        ValueError: It cannot be read; the sentence shows nothing of it.
    """

    def __init__(self, whole: str) -> None:
        self.whole = whole
        scheme, separator, rest = whole.partition("://")
        if not separator:
            raise ValueError("its URL has no beginning such as postgresql://")
        self.kind = {"postgres": "postgresql"}.get(kind := scheme.split("+")[0].lower(), kind)
        try:
            netloc = urlsplit(whole).netloc
        except ValueError:
            raise ValueError(_UNREADABLE) from None
        who, at, hosts = netloc.rpartition("@")
        user, colon, password = who.partition(":")
        path, question, query = rest.removeprefix(netloc).partition("?")
        # a / in a password ends the part before the path there, and what is left of it would be taken for a host and shown
        if netloc and (any(not _is_port(host) for host in hosts.split(",")) or (not at and "@" in path)):
            raise ValueError(_UNREADABLE)
        options = [(*option.partition("=")[::2], option) for option in query.split("&")]
        given = [password] if colon else [value for name, value, _ in options if name == "password"]
        self.password = unquote(given[0]) if given else None
        public = "&".join(option for name, _, option in options if name != "password")
        self.without_password = f"{self.kind}://{user}{at}{hosts}{path}{question if public else ''}{public}"
        secret = [value for name, value, _ in options if any(word in name.lower() for word in _SECRET_WORDS)]
        self._secrets = {text for one in (password, *secret) for text in (one, unquote(one)) if text}

    def hidden(self, text: str) -> str:
        """`text` without what this URL has of secrets."""
        for secret in (self.whole, *sorted(self._secrets, key=len, reverse=True)):
            text = text.replace(secret, "…")
        return text


def _is_port(host: str) -> bool:
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else ""
    return not port or port.isdigit()
