"""What runs leave behind: records, identity, the stores, who is at work on what. Standard library only."""
