"""dCache: the properties of its pools for tagged transfers, printed and checked: `scitags dcache`.

What its pools tell is heard by the agent's source `firefly`.
"""
