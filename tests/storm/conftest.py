"""The hosts of the HTTP tests."""

from __future__ import annotations

from tests.http.conftest import site, whole_site
from tests.netns.conftest import bpf, root

__all__ = ["bpf", "root", "site", "whole_site"]
