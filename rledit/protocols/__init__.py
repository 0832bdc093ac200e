"""Evaluation protocols. A number without its protocol is not comparable."""

from rledit.decoding import generate
from rledit.protocols.reading import Reading, read
from rledit.protocols.registry import PROTOCOLS, Ask, Protocol, protocol

__all__ = ["PROTOCOLS", "Ask", "Protocol", "Reading", "generate", "protocol", "read"]
