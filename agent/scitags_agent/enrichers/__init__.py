"""The kinds of enricher, one in each module."""
