"""What a built wheel must be: small, stripped, without sources, and compiled for the baseline of its architecture.

Usage: python wheels/inspect_wheel.py WHEEL...
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import capstone
from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from elftools.elf.sections import Symbol

# Some 0.95 MB of extensions and 0.55 of Python, compressed. Symbols alone would take more than the rest.
MAX_BYTES = 2_000_000
CEXT = Path(__file__).resolve().parents[1] / "cext"
SOURCE_SUFFIXES = (".c", ".h", ".pyx", ".pxd", ".pxi", ".html")
MACHINES = {"aarch64": "EM_AARCH64", "armv7l": "EM_ARM", "x86_64": "EM_X86_64"}

# Addenda to the ABI for the Arm Architecture: the values of the attributes that name a CPU's features.
ARCHITECTURE_V7 = 10
FP_VFPV3_D16 = 4
NO_ADVANCED_SIMD = 0
ARGUMENTS_IN_VFP_REGISTERS = 1
# VFPv3-D16 ends at d15.
BEYOND_D16 = re.compile(r"\bd(1[6-9]|2\d|3[01])\b")


class WheelError(Exception):
    """The wheel is not fit to be given to anyone; the message says why."""


def inspect_wheel(path: Path) -> str:
    """A line that describes the wheel. Raises WheelError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise WheelError(f"{path.name} has {size} bytes; at most {MAX_BYTES} are allowed")
    architecture = architecture_of(path)
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        if sources := [name for name in names if name.endswith(SOURCE_SUFFIXES)]:
            raise WheelError(f"{path.name} holds sources: {', '.join(sources)}")
        libraries = [name for name in names if ".so" in Path(name).name]
        expected = sorted(f"glec_fast/{source.relative_to(CEXT).with_suffix('')}" for source in CEXT.rglob("*.pyx"))
        if sorted(name.split(".")[0] for name in libraries) != expected:
            raise WheelError(f"{path.name} holds {libraries}; expected {', '.join(expected)} alone")
        for name in libraries:
            inspect_library(f"{path.name}: {name}", wheel.read(name), architecture)
    return f"{path.name}: {size / 1000:.0f} kB, {len(libraries)} stripped extensions, baseline {architecture}"


def architecture_of(path: Path) -> str:
    """The architecture in the wheel's tag. Raises WheelError."""
    platform = path.stem.split("-")[-1]
    for architecture in MACHINES:
        if platform.endswith(architecture):
            return architecture
    raise WheelError(f"{path.name} is for no architecture known here")


def inspect_library(name: str, content: bytes, architecture: str) -> None:
    """Raises WheelError."""
    elf = ELFFile(io.BytesIO(content))
    machine = elf.header["e_machine"]
    if machine != MACHINES[architecture]:
        raise WheelError(f"{name}: compiled for {machine}")
    unwanted = [
        section.name
        for section in elf.iter_sections()
        if section.name == ".symtab" or section.name.startswith(".debug")
    ]
    if unwanted:
        raise WheelError(f"{name}: not stripped: {', '.join(unwanted)}")
    if architecture == "armv7l":
        inspect_armv7(name, elf)


def inspect_armv7(name: str, elf: ELFFile) -> None:
    """Refuse what an ARMv7 without NEON, and with the 16 registers of VFPv3-D16, would not run."""
    attributes = {
        attribute.tag: attribute.value
        for subsection in elf.get_section_by_name(".ARM.attributes").iter_subsections()
        for scope in subsection.iter_subsubsections()
        for attribute in scope.iter_attributes()
    }
    for tag, allowed in (
        ("TAG_CPU_ARCH", ARCHITECTURE_V7),
        ("TAG_FP_ARCH", FP_VFPV3_D16),
        ("TAG_ADVANCED_SIMD_ARCH", NO_ADVANCED_SIMD),
        ("TAG_ABI_VFP_ARGS", ARGUMENTS_IN_VFP_REGISTERS),
    ):
        if (value := attributes.get(tag, 0)) != allowed:
            raise WheelError(f"{name}: {tag} is {value}, the baseline is {allowed}")
    # The attributes are what the compiler was told; the code is what a processor meets.
    if beyond := instructions_beyond_armv7(elf):
        raise WheelError(f"{name}: {len(beyond)} instructions that ARMv7 with VFPv3-D16 lacks, first {beyond[0]}")


def instructions_beyond_armv7(elf: ELFFile) -> list[str]:
    """NEON's instructions in the code, and those with a register that VFPv3-D16 has not."""
    # An odd address is that of Thumb code. All of a library is compiled in one mode.
    addresses = [symbol["st_value"] for symbol in elf.get_section_by_name(".dynsym").iter_symbols() if is_init(symbol)]
    mode = capstone.CS_MODE_THUMB if addresses[0] & 1 else capstone.CS_MODE_ARM
    disassembler = capstone.Cs(capstone.CS_ARCH_ARM, mode)
    disassembler.detail = True
    # Constants lie between functions.
    disassembler.skipdata = True
    code = elf.get_section_by_name(".text")
    return [
        f"{instruction.mnemonic} {instruction.op_str} at {instruction.address:#x}"
        for instruction in disassembler.disasm(code.data(), code["sh_addr"])
        # The id of skipped data is 0.
        if instruction.id and (capstone.arm.ARM_GRP_NEON in instruction.groups or BEYOND_D16.search(instruction.op_str))
    ]


def is_init(symbol: Symbol) -> bool:
    """True for the function that Python calls at import."""
    return bool(symbol.name.startswith("PyInit_"))


def main(paths: list[str]) -> int:
    try:
        for path in paths:
            sys.stdout.write(f"{inspect_wheel(Path(path))}\n")
    except WheelError as defect:
        sys.stderr.write(f"{defect}\n")
        return 1
    return 0 if paths else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
