"""Logging of the entry points: readable lines on standard error."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

NOISY = ("alembic", "mlflow", "matplotlib", "httpx", "filelock", "fsspec", "deepspeed")


def configure_logging() -> None:
    """Send our log lines to the terminal, and only warnings of the libraries'."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
