"""Errors a user can act on. One message each: what happened, why, and the way out."""


class RaydistillError(Exception):
    """Base of all errors that raydistill raises on purpose; the command line prints its message without a traceback."""

    exit_code = 1


class ConfigError(RaydistillError):
    """The config or the command line is wrong; nothing was computed."""

    exit_code = 2


class DataError(RaydistillError):
    """The data cannot be used as it is."""


class ModelError(RaydistillError):
    """A model cannot be loaded, or cannot be used the way the config asks for."""


class ArtifactError(RaydistillError):
    """Something in storage is missing, damaged or not writable."""


class StaleOwner(RaydistillError):
    """A newer process has taken over the run; this one must not write any more."""


class TeacherError(RaydistillError):
    """Teachers in actors of their own fail, or cannot be had; this may meet one training worker alone."""


class TrackingError(RaydistillError):
    """The MLflow store cannot be used."""


class Interrupted(RaydistillError):
    """The run was stopped on request; a checkpoint was written."""

    exit_code = 130
