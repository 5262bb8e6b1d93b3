"""What a configuration may hold: kinds of values, the signatures of its classes, and the tree of its groups."""
