"""The demonstration: tagged transfers between network namespaces, decoded again on the wire."""
