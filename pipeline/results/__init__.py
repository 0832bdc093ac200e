"""What is left when the cells are done: the lake, tracked runs, queries, tables and reports."""
