"""A chat on a terminal: what was asked, the line editor, the commands, words that wrap as they stream."""
