"""The client's address behind proxies: :class:`ClientAddress`, and :func:`coarse` for a shorter address to store."""

from __future__ import annotations

from asgi_sessions._core.address import KEPT_BITS, MAX_PROXIES, ClientAddress, coarse

__all__ = ["KEPT_BITS", "MAX_PROXIES", "ClientAddress", "coarse"]
