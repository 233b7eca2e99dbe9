"""What is done about flows: one file for each kind."""
