"""What things cost, each measured in one run beside the case without us: `make bench`."""
