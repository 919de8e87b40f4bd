"""Mask secrets in text: every pattern of a secret is here.

    masked(text)    *** in place of credentials in URIs, of secret parameters, of known tokens, and
                    of every secret value that the environment or DVC's configuration holds
    install()       the same for all that this process prints and logs from now on

Errors of `hpgr` and of the flows are masked when they are created (`hpgr.runtime.UserError`).
Reads the environment and `.dvc/config*`; writes nothing.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
SHORTEST = 4  # characters; a shorter secret is masked only in a URI
WHOLE_WORD = 8  # a value shorter than this is masked as a word of its own, not inside another one
DVC_CONFIGS = (Path(".dvc/config"), Path(".dvc/config.local"))
HARMLESS = frozenset({"true", "false", "none", "null", "yes", "no", "string", "required"})

# Last words of the names of parameters and settings whose value is a secret.
NAME = (
    r"(?:(?:passwords?|passwd|passphrase)"
    r"|(?<![A-Za-z0-9])(?:pwd|secrets?|token|api[_-]?key|access[_-]?key(?:[_-]id)?|account[_-]?key"
    r"|secret[_-]?key|private[_-]?key|encryption[_-]?key|credentials?|signature|auth[_-]string"
    r"|connection[_-]string))"
)
# scheme://userinfo@, also percent-encoded. The last @ counts: passwords hold @ and /, unescaped.
# Lengths have a limit, so that the time grows only linearly with a long text.
_CREDENTIALS = re.compile(
    r"(?<![A-Za-z0-9+.-])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}(?:://|%3A%2F%2F))"
    r"(?P<info>(?!/)(?:(?!://)[^\s\"'<>`]){0,1024})(?P<at>@|%40)",
    re.IGNORECASE,
)
_PARAMETER = re.compile(
    rf"(?P<name>[?&;]?(?:{NAME}|(?:[?&;]|%3F|%26)(?:X-Amz-)?(?:pass|key|sig|auth|sas|jwt))"
    r"(?:=|%3D|[\"']: ?[\"']))"
    r"(?P<value>(?!%26)[^\s&#;,\"'<>`)}\]]+?)(?=[:.]?(?:[\s&#;,\"'<>`)}\]]|$))",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(?P<kind>Basic|Bearer) (?P<value>[A-Za-z0-9+/=._~-]{8,})")
TOKENS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # Amazon
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{40,}"
    r"|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bxox[abposr]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\bhf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{32,}|\bpnu_[A-Za-z0-9]{30,}"
    r"|\bAIza[A-Za-z0-9_-]{35}"  # Google
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"  # JSON web token
)
_VARIABLE = re.compile(
    r"(?:^|_)(?:PASSWORD|PASSWD|PASSPHRASE|PWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY(?:_ID)?|SECRET_KEY"
    r"|PRIVATE_KEY|ACCOUNT_KEY|AUTH_STRING|CONNECTION_STRING)$",
    re.IGNORECASE,
)
NOT_SECRET = frozenset({"PWD", "OLDPWD"})  # the shell's folders
_SETTING = re.compile(rf"^[ \t]*[\w.-]*?{NAME}[ \t]*=[ \t]*(?P<value>\S.*?)[ \t]*$", re.I | re.M)


def masked(text: object) -> str:
    """Return `text` with *** for every secret in it; masking again changes nothing."""
    shown = str(text)
    if (values := _pattern(tuple(sorted(secret_values())))) is not None:
        shown = values.sub(MASK, shown)
    if "@" in shown or "%40" in shown:
        shown = _CREDENTIALS.sub(lambda found: f"{found['scheme']}{MASK}{found['at']}", shown)
    shown = _PARAMETER.sub(lambda found: f"{found['name']}{MASK}", shown)
    shown = _HEADER.sub(lambda found: f"{found['kind']} {MASK}", shown)
    return TOKENS.sub(MASK, shown)


def secret_values() -> frozenset[str]:
    """Return the secret values in this process's environment and in DVC's configuration."""
    return _of_environment(tuple(sorted(os.environ.items()))) | _of_dvc()


@lru_cache(maxsize=4)
def _of_environment(variables: tuple[tuple[str, str], ...]) -> frozenset[str]:
    found: set[str] = set()
    for name, value in variables:
        found.update(_in_uris(value))
        if _VARIABLE.search(name) and name.upper() not in NOT_SECRET:
            found.add(value)
            if name.upper().endswith("AUTH_STRING"):  # user:password
                found.add(value.partition(":")[2])
    return _worth_masking(found)


def _of_dvc() -> frozenset[str]:
    stamps = []
    for path in DVC_CONFIGS:
        try:
            stamps.append((str(path.absolute()), path.stat().st_mtime_ns))
        except OSError:  # missing, or not readable
            continue
    return _of_files(tuple(stamps))


@lru_cache(maxsize=4)
def _of_files(stamps: tuple[tuple[str, int], ...]) -> frozenset[str]:
    found: set[str] = set()
    for name, _ in stamps:
        try:
            text = Path(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found.update(match["value"].strip("\"'") for match in _SETTING.finditer(text))
        for line in text.splitlines():
            found.update(_in_uris(line))
    return _worth_masking(found)


def credentials(text: str) -> Iterator[str]:
    """Yield the passwords and tokens in the URIs of `text`, as written there."""
    for found in _CREDENTIALS.finditer(text):
        user, _, password = found["info"].partition(":")
        if password and password != "x-oauth-basic":
            yield password
        elif "http" in found["scheme"].lower() and user:  # a database's user is no token
            yield user
    for found in _PARAMETER.finditer(text):
        if found["name"][0] in "?&;":
            yield found["value"]


def _in_uris(text: str) -> Iterator[str]:
    """Yield the secrets in URIs in all their forms: decoded, encoded, cut by a parser."""
    for secret in credentials(text):
        yield secret
        yield unquote(secret)
        # Where a password holds @ or /, a parser takes a part of it for the host.
        yield from re.split(r"[/@?#:]", secret)
    for found in _CREDENTIALS.finditer(text):
        if ":" in found["info"]:
            yield base64.b64encode(unquote(found["info"]).encode()).decode()
    for found in _PARAMETER.finditer(text):
        yield found["value"]


def _worth_masking(values: Iterable[str]) -> frozenset[str]:
    """Drop values that are too short, harmless words or small numbers."""
    return frozenset(
        value
        for value in values
        if len(value) >= SHORTEST
        and value.lower() not in HARMLESS
        and not (value.isdigit() and len(value) < WHOLE_WORD)
        and set(value) != {"*"}
    )


@lru_cache(maxsize=4)
def _pattern(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return one pattern for all forms that the values take in a message, longest first."""
    forms: set[str] = set()
    for value in values:
        forms |= {value, quote(value, safe=""), quote(value), quote_plus(value)}
        forms |= {repr(value)[1:-1], json.dumps(value)[1:-1]}
    if not forms:
        return None
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile(
        "|".join(
            re.escape(form)
            if len(form) >= WHOLE_WORD
            else rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
            for form in longest_first
        )
    )


class MaskedStream:
    """A text stream that masks what is written to it and is otherwise the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` masked; return the length of `text`."""
        self._stream.write(masked(text) if isinstance(text, str) else text)  # bytes: its error
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line masked."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mask_logs() -> None:
    """Mask every log record of this process, for all loggers and handlers."""
    before = logging.getLogRecordFactory()
    if getattr(before, "masks", False):
        return

    def masking(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = before(*arguments, **options)
        try:
            message = record.getMessage()
        except Exception:  # wrong arguments: logging itself says so when it formats the record
            return record
        if (shown := masked(message)) != message:
            record.msg, record.args = shown, ()
        if record.exc_info and record.exc_info[0] is not None:
            # Formatters use this text if it is set.
            record.exc_text = masked("".join(traceback.format_exception(*record.exc_info))).rstrip()
        return record

    masking.masks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(masking)


def install() -> None:
    """Mask what this process logs and prints from now on, tracebacks too; call at its start."""
    mask_logs()
    if not isinstance(sys.stdout, MaskedStream):
        sys.stdout = MaskedStream(sys.stdout)  # type: ignore[assignment]
    if not isinstance(sys.stderr, MaskedStream):
        sys.stderr = MaskedStream(sys.stderr)  # type: ignore[assignment]
