"""Reads marked packets and fireflies back: the other end of the wire."""
