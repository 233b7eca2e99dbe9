"""Configurations of other daemons, turned into ours."""
