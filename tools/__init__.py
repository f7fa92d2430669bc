"""What builds, checks and sends upstream the fork: none of it is installed."""
