"""What a client sends in a body, read with bounds. Layer 1; for the rooms that answer requests themselves."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request

FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"


class TooLong(Exception):
    """The body has more bytes than it may."""


class NeverArrived(Exception):
    """The client left before its body was there."""


async def body_of(request: Request, limit: int) -> bytes:
    """The body, of ``limit`` bytes at most; no more than that and one chunk is ever held.

    Raises:
        TooLong, NeverArrived: there is none to be had.
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
    """The media type of the body, without its parameters, in small letters; empty if the header is missing or there twice.

    No parameter matters here, so nothing after the type is read (RFC 9110, section 8.3.1).
    """
    said = request.headers.getlist("content-type")
    return said[0].partition(";")[0].strip(" \t").lower() if len(said) == 1 else ""


def form_in(body: bytes, *, max_fields: int, keep_blank: bool = True) -> dict[str, list[str]]:
    """The fields of a form, each with all of its values.

    Raises:
        ValueError: it is none, or has more fields.
    """
    return parse_qs(
        body.decode("ascii"),
        keep_blank_values=keep_blank,
        strict_parsing=True,
        errors="strict",
        max_num_fields=max_fields,
    )
