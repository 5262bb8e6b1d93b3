"""Inserted parts: what is not an update of one weight."""
