"""Talks to the store. Knows no HTTP."""
