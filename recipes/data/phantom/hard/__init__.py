"""The harder edition: six patterns in either lung, whose meaning depends on what the note tells of that side."""
