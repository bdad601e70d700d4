"""glec-fast with `wait_for_disk=False`: many calls share a transaction; a life waits for the disk all the same."""

from __future__ import annotations

import publisher
from with_glec import GlecPublisher


class UnwaitedPublisher(GlecPublisher):
    wait_for_disk = False


if __name__ == "__main__":
    publisher.main(UnwaitedPublisher)
