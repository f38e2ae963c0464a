"""Every error that swinopt raises on purpose.

Each message says what was wrong and what to do about it. Catch :class:`SwinoptError` to catch them all; the command
line turns them into one line and exit code 2.
"""

from __future__ import annotations


class SwinoptError(Exception):
    """Base of all errors that swinopt raises on purpose."""


class ModelError(SwinoptError):
    """The model cannot be read, is not a valid ONNX model, or cannot be written where it was asked to go."""


class OptionError(SwinoptError):
    """An argument, a target, a pass name or a pass option is not one that swinopt knows."""


class PassError(SwinoptError):
    """A pass left the graph structurally broken, or failed, while running outside of a verified pipeline."""


class VerificationError(SwinoptError):
    """Two models that should compute the same do not, or cannot be compared on the same inputs."""


class MissingDependencyError(SwinoptError):
    """An optional package is needed for what was asked; the message names the extra that installs it."""


def first_line(error: Exception) -> str:
    """What another library's error says, less the pages that some add; its type, if it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
