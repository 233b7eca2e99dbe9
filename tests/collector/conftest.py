"""The two hosts of the kernel's tests, for capturing between them."""

from tests.netns.conftest import bpf, pair, root

__all__ = ["bpf", "pair", "root"]
