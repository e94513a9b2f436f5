"""What tests of your own can use: the model-free encoder, and the check that any encoder can be put to."""

from ragkit.encode.models.hash import HashEncoder
from ragkit.testing.encoder_contract import assert_encoder_contract

__all__ = ["HashEncoder", "assert_encoder_contract"]
