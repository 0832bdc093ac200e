"""MLflow runs as a view of the lake, and the liveness of the processes behind them."""
