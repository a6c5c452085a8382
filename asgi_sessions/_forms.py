"""Reads the body of a request, with limits. For the page, the token endpoints and the demo."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from asgi_sessions._core.json import once

FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"


class TooLong(Exception):
    """The body is longer than allowed."""


class NeverArrived(Exception):
    """The client disconnected before it had sent the whole body."""


async def body_of(request: Request, limit: int) -> bytes:
    """The body, of ``limit`` bytes at most. Memory holds no more than that and one chunk.

    Raises:
        TooLong: the body has more bytes. NeverArrived: the client disconnected.
    """
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise TooLong
    except ClientDisconnect:
        raise NeverArrived from None
    return body


def kind_of(request: Request) -> str:
    """The media type of the body in small letters, without parameters (RFC 9110, section 8.3.1).

    Empty if the header is missing or comes twice.
    """
    values = request.headers.getlist("content-type")
    return values[0].partition(";")[0].strip(" \t").lower() if len(values) == 1 else ""


def form_in(body: bytes, *, max_fields: int, keep_blank: bool = True) -> dict[str, str]:
    """The fields of a form.

    Raises:
        ValueError: it is not a form, has too many fields, or has a field twice, which two parsers could read differently.
    """
    fields = parse_qsl(
        body.decode("ascii"),
        keep_blank_values=keep_blank,
        strict_parsing=True,
        errors="strict",
        max_num_fields=max_fields,
    )
    return once(fields)
