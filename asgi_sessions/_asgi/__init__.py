"""Knows ASGI. Decides nothing about sessions."""
