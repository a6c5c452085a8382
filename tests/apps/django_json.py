"""What has Django's Redis cache write JSON and not pickles."""

from __future__ import annotations

import json
from typing import Any


class Serializer:
    """For ``OPTIONS`` of the cache."""

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)
