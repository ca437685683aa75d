"""Locations without secrets: whatever a URL says is stored in manifests and shown in logs and reports."""

import re
from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator

from prefect_augment.errors import ParameterError

# Parts of the names of a query's parameters that sign or authorise; a SAS of Azure has sig.
_SECRET_WORDS = (
    "token", "signature", "secret", "password", "passwd", "credential", "apikey", "accesskey", "awsaccesskeyid",
    "googleaccessid", "authorization", "sessionid", "xamz", "xgoog",
)  # fmt: skip
_SECRET_NAMES = frozenset({"sig", "sign", "pwd", "pass", "auth", "jwt", "key", "code", "policy"})
# Of long and random values these are public.
_PUBLIC_NAMES = frozenset(
    {"versionid", "generation", "revision", "rev", "version", "sha256", "md5"}
)
_TOKEN_LENGTH, _RANDOM_LENGTH = 6, 24
# Schemes whose part before an @ may be a token alone; others have a user there, or a container (abfs).
_WEB = ("http", "https", "ftp", "ftps")
_WITH_PORTS = (*_WEB, "sftp", "ssh", "smb", "hdfs", "webhdfs", "webdav")
_URL_IN_TEXT = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)


def refuse_secrets(uri: str) -> str:
    """Return a location; ParameterError if it is a URL with a password, a token or a signature."""
    for url in uri.split("::"):
        why = _secret_in(url)
        if why:
            scheme = uri.partition("://")[0]
            raise ParameterError(
                f"the URL {scheme}://… holds {why}, which manifests, logs and reports would show; save a Prefect "
                "storage block with the credentials and name it in storage_block, or give them in the environment, and "
                "drop them from the URL."
            )
    return uri


def hide_secrets(text: str) -> str:
    """Return a text of somebody else's, such as a driver's error, in which URLs with secrets are cut."""
    return _URL_IN_TEXT.sub(
        lambda url: f"{url[0].partition('://')[0]}://…" if _secret_in(url[0]) else url[0], text
    )


def _secret_in(url: str) -> str:
    """Return what is secret in a URL, in words; empty if nothing is."""
    scheme, sign, rest = url.partition("://")
    if not sign:
        return ""
    scheme = scheme.rpartition(":")[2].lower()
    # A password may have a slash, behind which a parser would look for no user any more.
    host, _, path = unquote(rest).partition("/")
    user, at, _ = host.rpartition("@")
    if at and (":" in user or scheme in _WEB):
        return "a password or token before an @"
    _, colon, port = host.rpartition(":")
    is_port = scheme in _WITH_PORTS and port.isdecimal() and int(port) < 65536
    if colon and not at and not is_port and not host.startswith("arn:") and "@" in path:
        return "a password before an @"
    try:
        parts = urlsplit(f"x://{rest}")
    except ValueError:  # brackets, as of a glob
        query, fragment = rest.partition("?")[2], rest.partition("#")[2]
    else:
        query, fragment = parts.query, parts.fragment
    for name, value in parse_qsl(f"{query}&{fragment}", keep_blank_values=True):
        if _is_secret(name, value):
            return f"the parameter {name[:30]!r}, a token or signature"
        if _secret_in(value):
            return f"a URL with a secret in the parameter {name[:30]!r}"
    return ""


def _is_secret(name: str, value: str) -> bool:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if not value or plain in _PUBLIC_NAMES:
        return False
    if plain in _SECRET_NAMES and len(value) >= _TOKEN_LENGTH:
        return True
    random = re.fullmatch(r"[^\s/*]*\d[^\s/*]*", value) and len(value) >= _RANDOM_LENGTH
    return bool(random) or any(word in plain for word in _SECRET_WORDS)


#: A path or URL; one with a secret is refused before it is stored anywhere.
Location = Annotated[str, AfterValidator(refuse_secrets)]
