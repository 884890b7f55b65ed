"""Writes snapshots: everything that plan, doctor and status read, without private data."""
