"""The documents that run: the walkthrough's blocks executed, its pictures drawn from data."""
