"""What makes a number: recipes, the plan of a run and its identity, searches, published settings."""

from __future__ import annotations
