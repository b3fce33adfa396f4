"""The one compiled part of the package, built where there is a C compiler.

`optional` lets an installation without a compiler go through: `rematch_ray.index.maxsim_int8` then
computes the same bits without it. Everything else about the package stands in pyproject.toml.
"""

import os

from setuptools import Extension, setup

KERNEL = "rematch_ray/index/_maxsim"
PARTS = ("", "_x86", "_single", "_keep", "_best", "_bits", "_climb", "_exact", "_query")

setup(
    ext_modules=[
        Extension(
            "rematch_ray.index._maxsim",
            sources=[f"{KERNEL}{part}.c" for part in PARTS],
            depends=[f"{KERNEL}.h", f"{KERNEL}_avx512.h"],
            libraries=[] if os.name == "nt" else ["m"],
            # no contraction: a fused multiply-add would round differently from the other paths
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=True,
        )
    ]
)
