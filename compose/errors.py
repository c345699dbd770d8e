"""Errors and warnings that name what came, what was expected and what to write instead."""


class MissingEnergy(TypeError):
    """An operation needs an energy and a member has only a score."""


class ScopeError(ValueError):
    """Terms over different variables were combined, or a state lacks a variable."""


class NotNormalizable(ValueError):
    """A composite whose density has no finite integral was asked for samples."""


class NonFinite(ValueError):
    """A start, a parameter or a result that must be finite is not."""


class MissingExtra(ImportError):
    """An optional dependency is not installed; the message names the ``pip install``."""


class CompileError(RuntimeError):
    """A kernel cannot be compiled for a target; the message says what stands in the way."""


class SamplingWarning(UserWarning):
    """A draw was made, but something about it limits what may be concluded from it."""
