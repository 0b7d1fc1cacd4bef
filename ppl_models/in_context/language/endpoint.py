"""Requests to a completions endpoint that speaks the OpenAI protocol: retried, timed, limited; standard library only.

The key is read from the environment when a request is made and goes into its header: it is in no object, file or
message of ours, and it is sent to no address that is not encrypted but this machine's own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOCAL = ("127.0.0.1", "localhost", "::1")
AGAIN = (408, 409, 429, 500, 502, 503, 504)
"""Answers after which a request is made again."""
LONGEST_WAIT = 30.0
LARGEST = 2**28
"""Bytes of one answer at most."""


class EndpointError(OSError):
    """An endpoint that does not answer, or not with what was asked for."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Deadline:
    """End a request for good after so many seconds.

    A socket's own timeout begins anew with every byte: a server that sends one now and then would hold it for ever.
    """

    def __init__(self, seconds: float) -> None:
        self.late, self._sockets = False, list[socket.socket]()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self.late = True
        for held in self._sockets:
            with contextlib.suppress(OSError):  # closed meanwhile
                held.shutdown(socket.SHUT_RDWR)

    def handlers(self) -> list[urllib.request.BaseHandler]:
        """Handlers of a request whose sockets are ended in time."""
        sockets, end = self._sockets, self

        class Plain(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)
                if end.late:
                    end._end()

        class Secure(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)
                if end.late:
                    end._end()

        class OpenPlain(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Plain, request)

        class OpenSecure(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Secure, request)

        return [OpenPlain(), OpenSecure()]


@dataclass(frozen=True)
class Endpoint:
    """Where a language model is served.

    ``url``           up to the version, ``http://127.0.0.1:8000/v1``; ``/completions`` is added.
    ``model``         its name there.
    ``timeout``       seconds for one whole answer; ``retries`` further tries, the first after ``wait`` seconds and each
                      after twice as long, or as long as the server asks for, at most 30 s.
    ``concurrency``   requests at once.
    ``key_variable``  environment variable of the key; none is sent where it is not set.
    """

    url: str
    model: str
    timeout: float = 120.0
    retries: int = 4
    wait: float = 0.5
    concurrency: int = 4
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http://... or https://... up to the version (.../v1), got {self.url!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"url must carry no name, password or query; put the key into the variable {self.key_variable}"
            )
        if not self.model:
            raise ValueError("model must be the model's name at the endpoint, got an empty one")
        if self.timeout <= 0 or self.retries < 0 or self.concurrency < 1 or self.wait < 0:
            raise ValueError(
                f"timeout must be positive, retries and wait at least 0, concurrency at least 1, got {self.timeout}, "
                f"{self.retries}, {self.wait} and {self.concurrency}"
            )

    @property
    def local(self) -> bool:
        """Whether the address is this machine's own."""
        return urllib.parse.urlsplit(self.url).hostname in LOCAL

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request for completions.  Raises :class:`EndpointError` after the last retry."""
        sent = json.dumps({"model": self.model, **body}).encode()
        last, asked = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(LONGEST_WAIT, max(self.wait * 2 ** (attempt - 1), asked)))
            asked = 0.0
            with _Deadline(self.timeout) as deadline:
                try:
                    with self._opener(deadline).open(self._request(sent), timeout=self.timeout) as answer:
                        return _object(_whole(answer))
                except urllib.error.HTTPError as error:
                    last = f"HTTP {error.code} {error.reason}: {_message(self._without_key(_told(error)))}"
                    if error.code not in AGAIN:
                        remedy = _remedy(error.code, self)
                        raise EndpointError(f"{self.url} refuses the request, {last}{remedy}") from None
                    asked = _seconds(error.headers.get("Retry-After"))
                except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                    reason = getattr(error, "reason", error)
                    late = deadline.late or isinstance(reason, TimeoutError)
                    last = "no whole answer in time" if late else f"{type(error).__name__}: {reason}"
                except _Malformed as error:
                    last = "no whole answer in time" if deadline.late else str(error)
        raise EndpointError(
            f"{self.url} failed {self.retries + 1} times, last {last}; check that the server runs, or give a longer "
            "timeout, more retries or fewer paths a request"
        )

    def _request(self, sent: bytes) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_variable)
        if key:
            if not self.local and not self.url.startswith("https:"):
                raise ValueError(
                    f"{self.url} is not encrypted: the key in {self.key_variable} is not sent there; use https, or "
                    "unset it"
                )
            headers["Authorization"] = f"Bearer {key}"
        return urllib.request.Request(self.url.rstrip("/") + "/completions", data=sent, headers=headers)

    def _opener(self, deadline: _Deadline) -> urllib.request.OpenerDirector:
        proxies = [urllib.request.ProxyHandler({})] if self.local else []
        return urllib.request.build_opener(_NoRedirect, *deadline.handlers(), *proxies)

    def _without_key(self, text: str) -> str:
        key = os.environ.get(self.key_variable)
        return text.replace(key, "(key)") if key else text


class _Malformed(Exception):
    """An answer that is not a JSON object."""


def _whole(answer: http.client.HTTPResponse) -> bytes:
    raw = answer.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise _Malformed(f"an answer of more than {LARGEST:,} bytes")
    if answer.length:
        raise http.client.IncompleteRead(raw, answer.length)
    return raw


def _told(error: urllib.error.HTTPError) -> str:
    """The first words of a refusal; empty where they cannot be read."""
    try:
        return error.read(2000).decode("utf-8", "replace")
    except (http.client.HTTPException, OSError):
        return ""


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"an answer that is not JSON ({len(raw)} bytes)") from error
    if not isinstance(found, dict):
        raise _Malformed(f"an answer that is no JSON object but {type(found).__name__}")
    return found


def _message(text: str) -> str:
    """The message of an error's body, in one line."""
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return " ".join(str(text).split())[:300]


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value)) if value else 0.0
    except ValueError:
        return 0.0


def _remedy(code: int, endpoint: Endpoint) -> str:
    if code in (401, 403):
        return f"; put a valid key into the environment variable {endpoint.key_variable}"
    if code == 404:
        return f"; is {endpoint.model!r} served there, and does the address end in /v1?"
    if 300 <= code < 400:
        return "; give the address it redirects to"
    return ""
