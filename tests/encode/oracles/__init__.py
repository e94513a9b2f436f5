"""The models in float64 numpy, from their published descriptions: slow, plain, one input at a time, no code of ragkit's."""
