"""What every command shares: arguments, exit codes, errors, text for people, progress and JSON
events.

Used by the commands, and by every package that raises an error for the user or reports progress.
"""
