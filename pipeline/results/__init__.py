"""Results of finished cells: the lake, tracked runs, queries, tables and reports."""
