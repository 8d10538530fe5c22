"""The version; apart, so that every room can name it without importing the package's front."""

__version__ = "0.1.0"
