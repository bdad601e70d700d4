"""`python -m glec_fast` is the same as `glec-fast`."""

import sys

from glec_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
