"""How a model is to be loaded, as one value: what `load_encoder` takes beside the model's name."""

from __future__ import annotations

from dataclasses import dataclass

MULTI_SUFFIX = "+multi"  # behind a model's name: multi-vectors beside the dense vector


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """The settings of `load_encoder`, which says what each means."""

    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    task: str | None = None
    max_tokens: int | None = None
    max_pixels: int | None = None
    merge_adapters: bool = False

    @property
    def is_cpu_float32(self) -> bool:
        """Whether nothing but float32 on the CPU is asked for; "auto" includes it."""
        return self.device in (None, "cpu") and self.dtype in (None, "auto", "float32")
