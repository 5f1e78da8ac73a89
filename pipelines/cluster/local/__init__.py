"""What belongs to a cluster that a command starts on this machine, and ends with it."""
