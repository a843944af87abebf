"""The command `truequant`."""

from truequant.cli.app import main

__all__ = ["main"]
