"""The optional extension; everything else stands in pyproject.toml.

Without a C compiler the install succeeds all the same, and ragkit/store/vectors/maxsim.py gives the same answers through NumPy.
One binary serves every Python from 3.11 on (the stable ABI).
"""

import os

from setuptools import Extension, setup

KERNEL = "ragkit/store/vectors/kernel"
# -ffp-contract=off: a fused multiply-add rounds once instead of twice, and the codes would differ between machines.
FLAGS = [] if os.name == "nt" else ["-O3", "-std=c11", "-ffp-contract=off", "-fvisibility=hidden"]

setup(
    ext_modules=[
        Extension(
            "ragkit.store.vectors._maxsim",
            sources=[f"{KERNEL}/module.c", f"{KERNEL}/maxsim.c"],
            depends=[f"{KERNEL}/maxsim.h", f"{KERNEL}/block.h"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=FLAGS,
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
