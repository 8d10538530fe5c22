"""Training as a function of a state and a phase. Nothing here reads or writes files."""
