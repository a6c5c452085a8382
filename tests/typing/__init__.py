"""Checked by pyright as users would; see program.py."""
