"""Pure code: no I/O, no clock of its own, no ASGI. Read it first."""
