"""Device-bound sessions: a stolen cookie is worth nothing without the device (W3C, Device Bound Session Credentials).

::

    sessions = Sessions(store, secret_keys=[key], device_bound=DeviceBound())

After a log-in the browser makes a key pair that cannot leave the device. Every few minutes it proves that it has the private key,
and receives a second cookie for the next few minutes. Browsers without DBSC are served as before. ``docs/device-bound.md`` says
what this protects from, and how to introduce it.
"""

from __future__ import annotations

from asgi_sessions.dbsc._options import DeviceBound

__all__ = ["DeviceBound"]


def is_confirmed(device: bytes) -> bool:
    """Whether what lies in a record binds its session: the browser has shown that it has the key."""
    if not device:
        return False
    from asgi_sessions.dbsc._binding import unpack_binding  # takes a while to load, and few need it

    binding = unpack_binding(device)
    return binding is not None and binding.is_confirmed
