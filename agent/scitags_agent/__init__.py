"""The shared local agent: takes flow events from every source, marks packets, sends fireflies."""
