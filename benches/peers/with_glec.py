"""glec_fast.Client, in memory: the program of with_paho.py with another class."""

from __future__ import annotations

import with_paho

import glec_fast

if __name__ == "__main__":
    with_paho.main(glec_fast.Client, glec_fast.__version__)
