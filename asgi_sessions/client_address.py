"""Whose address a request came from, behind proxies: :class:`ClientAddress`, and :func:`coarse`, as much of it as may be kept."""

from __future__ import annotations

from asgi_sessions._core.address import KEPT_BITS, MAX_PROXIES, ClientAddress, coarse

__all__ = ["KEPT_BITS", "MAX_PROXIES", "ClientAddress", "coarse"]
