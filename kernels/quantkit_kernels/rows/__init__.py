"""What happens to one token's row between matrix products."""
