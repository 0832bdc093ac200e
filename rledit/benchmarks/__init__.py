"""How fast the fast path is: textbook, ours and the bare passes owed, on the same token batches."""
