"""Bytes and locks: whole files, hashes, claims, weights files. Standard library only."""
