"""The two architectures that wheels are cross-built for, and what a wheel for each must look like."""

from __future__ import annotations

from dataclasses import dataclass

# The guests are Debian 12's, and so is their Python.
PYTHON_VERSION = "3.11"
PYTHON_TAG = "cp311"
# The oldest glibc that apsw's aarch64 wheels run on; nothing is gained by going below a dependency.
GLIBC_FLOOR = "2.28"


@dataclass(frozen=True)
class Target:
    """One architecture.

    name: as in platform tags. debian: Debian's name for it. oci: architecture and variant in container images.
    multiarch: the triplet in file names. emulator: its entry in binfmt_misc. cpu: the least that we promise to run on,
    as the emulator names it; what it lacks is an illegal instruction. compiler_options: target, oldest glibc and CPU
    baseline, for `zig cc`. platforms: tags of wheels that run in the guest (glibc 2.36).
    """

    name: str
    debian: str
    oci: tuple[str, str]
    multiarch: str
    emulator: str
    cpu: str
    compiler_options: tuple[str, ...]
    platforms: tuple[str, ...]


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="aarch64",
            debian="arm64",
            oci=("arm64", "v8"),
            multiarch="aarch64-linux-gnu",
            emulator="qemu-aarch64",
            cpu="cortex-a53",
            compiler_options=("-target", f"aarch64-linux-gnu.{GLIBC_FLOOR}", "-mcpu=generic"),
            platforms=("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
        ),
        Target(
            name="armv7l",
            debian="armhf",
            oci=("arm", "v7"),
            multiarch="arm-linux-gnueabihf",
            emulator="qemu-arm",
            cpu="cortex-a9,neon=off",
            # Debian armhf's baseline: VFPv3 with 16 double registers. "generic" alone means 32 of them and NEON.
            compiler_options=(
                "-target",
                f"arm-linux-gnueabihf.{GLIBC_FLOOR}",
                "-mcpu=generic+v7a+vfp3d16-neon-d32",
            ),
            platforms=("manylinux_2_31_armv7l", "manylinux_2_17_armv7l", "manylinux2014_armv7l"),
        ),
    )
}
