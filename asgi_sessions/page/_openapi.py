"""The OpenAPI document of the page's JSON."""

from __future__ import annotations

from typing import Any, get_args

from asgi_sessions._core.history import Happening, Reason
from asgi_sessions._core.user_agent import Kind

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_TIME = {"type": "string", "format": "date-time"}
_FLAG = {"type": "boolean"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list_of(name: str, of: str) -> dict[str, Any]:
    return _object(**{name: {"type": "array", "items": {"$ref": f"#/components/schemas/{of}"}}})


def _answer(description: str, schema: dict[str, Any] | None = None, kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, **({} if schema is None else {"content": {kind: {"schema": schema}}})}


_PROBLEM = {"$ref": "#/components/schemas/Problem"}


def _problem(description: str) -> dict[str, Any]:
    return _answer(description, _PROBLEM, "application/problem+json")


_READING = {
    "401": _problem("No user is logged in."),
    "503": _answer(
        "The store cannot be asked; come back later."
    ),  # from the page, or from the middleware without a JSON body
}
_CHANGING = {
    **_READING,
    "401": _problem("No user is logged in, or the last proof of who it is lies too far back."),
    "403": _answer("Sent by another origin, or by a user who acts as this one."),
}
_NOT_FOUND = {"404": _problem("There is no such session of this user.")}
_ID = {"name": "id", "in": "path", "required": True, "schema": _TEXT}

_DEVICE = _object(
    browser=_TEXT_OR_NULL,
    version=_TEXT_OR_NULL,
    system=_TEXT_OR_NULL,
    kind={"type": "string", "enum": list(get_args(Kind))},
)
_LOCATION = _object(network=_TEXT_OR_NULL, country=_TEXT_OR_NULL, city=_TEXT_OR_NULL)
_SCHEMAS = {
    "Session": _object(
        id=_TEXT,
        current=_FLAG,
        name=_TEXT,
        kind={"type": "string", "enum": ["browser", "token"]},
        remembered=_FLAG,
        device_bound=_FLAG,
        is_impersonated=_FLAG,
        created_at=_TIME,
        last_seen_at=_TIME,
        authenticated_at=_TIME,
        expires_at=_TIME,
        device=_DEVICE,
        location=_LOCATION,
    ),
    "Entry": _object(
        at=_TIME,
        event={"type": "string", "enum": list(get_args(Happening))},
        reason={"enum": [*get_args(Reason), None]},
        session_id=_TEXT,
        new_device=_FLAG,
        device_bound=_FLAG,
        device=_DEVICE,
        location=_LOCATION,
    ),
    "Problem": _object(title=_TEXT, status={"type": "integer"}),
}


def openapi(base: str) -> dict[str, Any]:
    """The document (OpenAPI 3.1.0) for a page mounted at ``base``."""
    limit = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}}
    name = {"content": {"application/json": {"schema": _object(name={"type": "string", "maxLength": 64})}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sessions", "version": "1", "description": "The sessions of whoever is logged in."},
        "servers": [{"url": base or "/"}],
        "security": [{"cookie": []}],
        "paths": {
            "/api/sessions": {
                "get": {
                    "operationId": "listSessions",
                    "summary": "Where this user is logged in, latest activity first.",
                    "responses": {"200": _answer("The sessions.", _list_of("sessions", "Session")), **_READING},
                },
                "delete": {
                    "operationId": "endOtherSessions",
                    "summary": "End all sessions but this one.",
                    "responses": {"200": _answer("How many ended.", _object(ended={"type": "integer"})), **_CHANGING},
                },
            },
            "/api/sessions/{id}": {
                "delete": {
                    "operationId": "endSession",
                    "summary": "End one session; this one is a log-out.",
                    "parameters": [_ID],
                    "responses": {"204": _answer("It has ended."), **_CHANGING, **_NOT_FOUND},
                },
                "patch": {
                    "operationId": "nameSession",
                    "summary": "Give the device of a session a name; an empty one takes it away.",
                    "parameters": [_ID],
                    "requestBody": {"required": True, **name},
                    "responses": {
                        "204": _answer("It has that name."),
                        "413": _problem("The body is too long."),
                        "415": _problem("The body is no JSON, by its Content-Type."),
                        "422": _problem("That is no name."),
                        **_CHANGING,
                        **_NOT_FOUND,
                    },
                },
            },
            "/api/history": {
                "get": {
                    "operationId": "history",
                    "summary": "What happened to the sessions of this user, the latest first.",
                    "parameters": [limit],
                    "responses": {
                        "200": _answer("The history.", _list_of("history", "Entry")),
                        "422": _problem("limit is none, or is there twice."),
                        **_READING,
                    },
                }
            },
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "cookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "__Host-Http-session",
                    "description": "As the app sets it.",
                }
            },
        },
    }
