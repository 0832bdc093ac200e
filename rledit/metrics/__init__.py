"""Evaluation protocols. A number without its protocol is not comparable."""

from rledit.metrics.decoding import generate
from rledit.metrics.reading import Reading, read
from rledit.metrics.registry import PROTOCOLS, Ask, Protocol, protocol

__all__ = ["PROTOCOLS", "Ask", "Protocol", "Reading", "generate", "protocol", "read"]
