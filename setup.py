"""The table of C extensions; everything else is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

# GLEC_DEBUG_BUILD=1 turns on Cython's annotation (build/cython/*.html), C asserts and bounds checks.
DEBUG = os.environ.get("GLEC_DEBUG_BUILD") == "1"
# GLEC_SANITIZE=alignment, or another list for gcc's -fsanitize, ends the process at the first defect: `make ubsan`.
SANITIZE = [f"-fsanitize={os.environ['GLEC_SANITIZE']}"] if os.environ.get("GLEC_SANITIZE") else []
# Python's own flags have -g: a fifth of the compiler's time, for what the wheels are stripped of.
C_FLAGS = ["-O2", "-Wall", "-Wextra", *(["-UNDEBUG"] if DEBUG else ["-DNDEBUG", "-g0"])]
if SANITIZE:
    C_FLAGS += [*SANITIZE, "-fno-sanitize-recover=all"]

# cext/PACKAGE/NAME.pyx becomes glec_fast.PACKAGE.NAME.
EXTENSIONS = (
    "aio/_waiting",
    "durable/_image_log",
    "durable/_steps",
    "durable/_table",
    "fleet/_json",
    "fleet/_payload",
    "outbox/_outbox",
    "outbox/_pace",
    "protocol/_inbound",
    "protocol/_session",
    "runtime/_field",
    "runtime/_lock",
    "transport/_link",
    "transport/_records",
)

setup(
    # As many compilers at once as there are cores.
    options={"build_ext": {"parallel": True}},
    ext_modules=cythonize(
        [
            Extension(
                "glec_fast." + path.replace("/", "."),
                [f"cext/{path}.pyx"],
                extra_compile_args=C_FLAGS,
                extra_link_args=SANITIZE,
            )
            for path in EXTENSIONS
        ],
        build_dir="build/cython",
        include_path=[".", "cext/fleet", "cext/outbox", "cext/protocol", "cext/runtime"],
        annotate=DEBUG,
        show_all_warnings=DEBUG,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": True,
            "freethreading_compatible": True,
            "embedsignature": True,
        },
    ),
)
