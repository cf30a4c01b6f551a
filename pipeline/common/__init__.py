"""What all stages share: printing, and reading and changing files that may come from a stranger."""
