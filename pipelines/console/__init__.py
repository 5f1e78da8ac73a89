"""What every command shares: arguments, exit codes, errors, progress and JSON events.

Used by the commands and by whatever reports problems or progress; knows no other package.
"""
