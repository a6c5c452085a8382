"""Device-bound sessions: a stolen cookie is worth nothing without the device (W3C, Device Bound Session Credentials).

::

    sessions = Sessions(store, secret_keys=[key], device_bound=DeviceBound())

After a log-in the browser makes a key pair. The private key cannot leave the device. Every few minutes the browser proves its key
and receives a second cookie for the next few minutes. Browsers without DBSC keep ordinary sessions. ``docs/device-bound.md``
describes the protection, its limits and the rollout.
"""

from __future__ import annotations

from asgi_sessions.dbsc._options import DeviceBound

__all__ = ["DeviceBound"]


def is_confirmed(device: bytes) -> bool:
    """Whether the packed binding of a record counts: the browser has shown its first bound cookie."""
    if not device:
        return False
    from asgi_sessions.dbsc._binding import unpack_binding  # slow to import, and most apps bind no sessions

    binding = unpack_binding(device)
    return binding is not None and binding.is_confirmed
