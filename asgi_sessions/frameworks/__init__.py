"""One small module per framework: ``fastapi``, ``litestar``, ``quart``. Plain Starlette needs none.

All three answer 401 in the same way. A 401 must carry a challenge (RFC 9110, section 11.6.1), and no scheme is registered for
cookies. We send ``WWW-Authenticate: Cookie``, since no browser opens its password dialog for it. If the user is known and only
has to prove their identity again, the challenge is that of RFC 9470:
``Cookie error=insufficient_user_authentication, max_age=300``. The app then needs ``session.confirm()``, not a log-in.
``require_device_bound`` answers 403, since neither of them helps a browser without DBSC.
"""
