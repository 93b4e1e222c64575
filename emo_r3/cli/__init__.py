"""The `emo-r3` command: options, printing and exit codes. All else is in the library."""
