"""The two hosts of the kernel's tests, for capturing between them."""

from tests.netns.conftest import pair, root

__all__ = ["pair", "root"]
