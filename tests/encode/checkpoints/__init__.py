"""Tiny random checkpoints in exactly the published layouts, made from a seed: files, config fields, tensor names, dtypes."""
