"""Logging of the entry points: readable lines on standard error."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

NOISY = ("alembic", "mlflow", "matplotlib", "httpx", "filelock", "fsspec", "deepspeed")


def configure_logging() -> None:
    """Send our log lines to the terminal, and only warnings of the libraries'."""
    console = Console(stderr=True)
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False, show_level=False)
        form = "%(message)s"
    else:  # a job's log or a file: whole lines, whatever their length
        handler = logging.StreamHandler()
        form = "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=[handler])
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
