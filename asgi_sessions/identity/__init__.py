"""Identity: identity providers end sessions by OpenID Connect Back-Channel Logout or by Shared Signals.

::

    provider = IdentityProvider("https://id.example.org", audience="shop")
    app.add_route("/oidc/back-channel-logout", BackChannelLogout(sessions, provider), methods=["POST"])

    # In the callback, after the user's log-in at the provider:
    session.log_in(user_id, provider=(claims["iss"], claims["sub"], claims.get("sid")))

Needs the extra ``[identity]``.
"""

from __future__ import annotations

from asgi_sessions._core.extras import needs

with needs("identity", "asgi_sessions.identity"):
    from asgi_sessions.identity._endpoints import BackChannelLogout, SecurityEvents
    from asgi_sessions.identity._provider import IdentityProvider

__all__ = ["BackChannelLogout", "IdentityProvider", "SecurityEvents"]
