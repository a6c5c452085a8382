"""Reads the settings of a database server that undo acknowledged writes.

The user of the app may lack the right to read them. Then there is no advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

_MYSQL: Final = (
    "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin')"
)
ASK: Final[Mapping[str, str]] = {
    "postgresql": "SELECT name, setting FROM pg_settings"
    " WHERE name IN ('fsync', 'synchronous_commit', 'synchronous_standby_names')",
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}
"""The statement for each dialect. PostgreSQL answers with the settings of the connection."""


def settings_in(rows: Iterable[Any]) -> Mapping[str, str]:
    """The settings in a reply, by name."""
    return {str(name): str(value).strip().lower() for name, value in rows}


def advice(settings: Mapping[str, str], *, durable_ends: bool) -> list[str]:
    """Warnings about settings that bring back ended sessions, each with the remedy.

    Args:
        durable_ends: whether ends wait for the synchronous standbys of PostgreSQL.
    """
    warnings = []
    if settings.get("fsync") == "off":
        warnings.append(
            "fsync is off, so a crash of the machine undoes log-outs and may destroy the data; set fsync = on"
        )
    if settings.get("synchronous_commit") == "off" and not durable_ends:
        warnings.append("synchronous_commit is off, so a crash undoes the latest log-outs; set synchronous_commit = on")
    if settings.get("synchronous_standby_names") == "" and durable_ends:
        warnings.append(
            "durable_ends=True, but there is no synchronous standby, so log-outs wait for none and a failover may undo them; "
            "set synchronous_standby_names"
        )
    if settings.get("innodb_flush_log_at_trx_commit", "1") not in ("1", "3"):  # MariaDB's 3 writes even more often
        warnings.append(
            "it does not write its log to the disk with each commit, so a crash undoes the latest log-outs; "
            "set innodb_flush_log_at_trx_commit = 1"
        )
    if settings.get("log_bin") == "on" and settings.get("sync_binlog", "1") != "1":
        warnings.append(
            "it does not write its binary log to the disk with each commit, so after a crash its replicas may lack the latest "
            "log-outs; set sync_binlog = 1"
        )
    return warnings
