"""torch, imported when it is first needed, and the names by which this package speaks of its values.

Naming torch's own types would import torch, or tie the types here to one of its versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ragkit.core.errors import MissingExtra

Torch = Any  # the module torch
Tensor = Any  # torch.Tensor
Weights = Mapping[str, Tensor]  # by name


def import_torch() -> Torch:
    """Return torch. This is the one place that imports it for the models that ragkit runs itself. Raises MissingExtra."""
    try:
        import torch
    except ImportError:
        raise MissingExtra.of("torch", "cpu", "encoding more than a short query") from None
    return torch
