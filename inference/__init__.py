"""How programs are fitted, checked and compared; names no family."""
