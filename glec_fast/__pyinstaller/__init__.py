"""For PyInstaller, which finds this folder by an entry point of ours, and asks it what a frozen program needs."""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Where `hook-glec_fast.py` is."""
    return [str(Path(__file__).parent)]
