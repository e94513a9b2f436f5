from __future__ import annotations

from tests.index.conftest import index

__all__ = ["index"]
