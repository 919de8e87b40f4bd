"""Find files that hold a secret, by name or content; a version must not carry them.

The search is for values, not names: code that only mentions a password is kept. It finds private
keys, tokens of known form, URIs with a password or token, literals assigned to a setting named like
a secret, and every secret value of the environment and of DVC's configuration. Compressed content
is not searched. Reads the files it is given. Writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from hpgr.masking import MASK, NAME, TOKENS, credentials, secret_values

NAMES = (
    ".env", ".env.*", ".envrc", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore",
    "*.kdbx", "*.ppk", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc",
    ".pypirc", ".npmrc", ".pgpass", ".my.cnf", ".htpasswd", ".git-credentials", "credentials",
    "credentials.json", "credentials.y*ml", "credentials.toml", "credentials.ini",
    "credentials.cfg", "credentials.txt", "credentials.csv", "client_secret*.json",
    "service_account*.json",
    "kubeconfig*", "*.kubeconfig", ".dockercfg", ".dockerconfigjson", "config.local", "*.tfstate",
    "secrets.y*ml", "secrets.json", "secrets.toml", ".vault-token",
)  # fmt: skip
WITHOUT_VALUES = (".env.example", ".env.sample", ".env.template", ".env.dist")  # judged by content
FOLDERS = frozenset({".aws", ".ssh", ".gnupg", ".azure", ".kube", ".docker", ".gcloud"})
CODE = frozenset(
    {".py", ".pyi", ".ipynb", ".j2", ".js", ".ts", ".html", ".css", ".md", ".rst", ".c", ".h"}
)  # in these a value without quotes is a name, and examples are common
EXAMPLES = frozenset({"password", "passwd", "pass", "pw", "secret", "token", "user", "xxx", "..."})
NO_VALUE = frozenset({"true", "false", "none", "null", "string", "required", "optional", "str"})
CERTAIN = 8  # characters; a known secret this long is searched for whatever it looks like
TEMPLATE = re.compile(r"[${}<>]|%\(|^\*+$|^[A-Z_]+$|^os\.|^env\b")
_QUOTED = re.compile(
    rf"{NAME}[\"']?\]?\s*(?::\s*[A-Za-z]+\s*)?(?:=>|[:=])\s*[rbf]?([\"'])(?P<value>[^\"']{{4,}})\1",
    re.IGNORECASE,
)
_BARE = re.compile(
    rf"^[\s+-]*(?:export\s+|set\s+|-\s*)?[\"']?[\w.-]*?{NAME}[\"']?\s*[:=]\s*(?P<value>[^\s\"'#,;]{{4,}})"
    r"\s*[,;]?\s*(?:#.*)?$",
    re.IGNORECASE,
)


def by_name(path: str) -> str | None:
    """Return the reason if a file of this name is never kept; None for any other."""
    parts = PurePosixPath(path.casefold()).parts
    if parts[-1] in WITHOUT_VALUES:
        return None
    if FOLDERS & set(parts[:-1]) or any(fnmatchcase(parts[-1], name) for name in NAMES):
        return "a file of this name holds secrets"
    return None


def by_content(path: str, lines: Iterable[tuple[int, str]]) -> str | None:
    """Return the reason if one of the lines (number, text) holds a secret; None if none does.

    The reason names the line and the kind, never the secret. Number 0 means that the line is not in
    the present file.
    """
    code = PurePosixPath(path.casefold()).suffix in CODE
    known = [value for value in secret_values() if _certain(value)]
    for number, line in lines:
        if kind := _kind(line, code, known):
            where = f"line {number}" if number else "a line of it before the change"
            return f"looks like it holds a secret: {where}, {kind}"
    return None


def in_file(path: Path) -> str | None:
    """Apply `by_name` and `by_content` to a file on disk."""
    text = as_text(path.read_bytes())
    return by_name(path.as_posix()) or by_content(
        path.as_posix(), enumerate(text.splitlines(), start=1)
    )


def as_text(content: bytes) -> str:
    """Decode the bytes of any file, UTF-16 too, so that ASCII can be found in the text."""
    return content.replace(b"\0", b"").decode("latin-1")


def _kind(line: str, code: bool, known: list[str]) -> str | None:
    if any(value in line for value in known):
        return "a secret of the environment or of DVC's configuration"
    if TOKENS.search(line):
        return "a key or token"
    if any(_is_value(secret, code) for secret in credentials(line)):
        return "a URI with a password or token"
    for pattern in (_QUOTED, *(() if code else (_BARE,))):
        if any(_is_value(found["value"], code) for found in pattern.finditer(line)):
            return "a value of a secret setting"
    return None


def _is_value(value: str, code: bool) -> bool:
    """Return True unless it is a placeholder, a short number or, in code, an example."""
    if TEMPLATE.search(value) or MASK in value or value.casefold() in NO_VALUE:
        return False
    if value.isdigit() and len(value) < CERTAIN:
        return False
    return not (code and (value.casefold() in EXAMPLES or " " in value))


def _certain(value: str) -> bool:
    """Return True unless the known secret may be an ordinary word."""
    return len(value) >= CERTAIN or (len(value) >= 6 and not value.isalpha())
