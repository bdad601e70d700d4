"""What callers need of `cext/durable/_image_log.pyx`: the log of in-flight images, its format and what writes it."""

GENERATION_BYTES: int
SLOT_BYTES: int
SLOTS: int
IMAGE_BYTES_MAX: int

def from_slot(slot: bytes) -> tuple[bytes, int, bytes] | None:
    """(generation, number, image) of a slot; None where it was never written, or torn."""

class ImageLog:
    """Of one open file, written by one thread at a time: its slots in turn, so that a write which a power cut tears
    leaves the one before it.
    """

    descriptor: int
    def __init__(self, descriptor: int, generation: bytes) -> None:
        """Raises ValueError unless the generation has GENERATION_BYTES."""
    def has_its_name(self) -> bool:
        """False once the file was moved, replaced or deleted: no later opening would find what is written to it."""
    def write(self, number: int, image: bytes) -> None:
        """Have an image on disk. Raises OSError, and ValueError where it has more than IMAGE_BYTES_MAX."""
