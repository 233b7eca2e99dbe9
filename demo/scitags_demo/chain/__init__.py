"""From a Rucio rule to the wire: real Rucio, real storages, real clients, and one link after the other looked at."""
