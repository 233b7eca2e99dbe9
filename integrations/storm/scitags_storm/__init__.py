"""StoRM WebDAV: its configuration for tagged transfers, printed and checked: `scitags storm`.

What StoRM writes into the named pipe is scitags_core.pipe_line.
"""
