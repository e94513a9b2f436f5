"""What tests of your own can use: the model-free encoder, a store in memory, and the laws of encoders and of stores."""

from ragkit.encode.models.hash import HashEncoder
from ragkit.testing.encoder_contract import assert_encoder_contract
from ragkit.testing.memory_store import MemoryStore
from ragkit.testing.store_contract import assert_store_contract

__all__ = ["HashEncoder", "MemoryStore", "assert_encoder_contract", "assert_store_contract"]
