"""The kernel side: loading, attaching and filling the programs of bpf/."""
