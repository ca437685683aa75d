"""Errors for users, one tree.

::

    AugmentError
    ├── ParameterError          a parameter that cannot be used (exit 2)
    │   └── MissingExtraError   a part that needs ``pip install 'prefect-augment[extra]'``
    ├── InputError              the source or hold-out cannot be used (exit 2)
    │   ├── EmptyFileError      a file without records
    │   ├── SchemaError         columns or types are not as expected
    │   ├── LabelError          the label column is missing, or cannot be a label
    │   ├── SourceChangedError  an object changed while it was read
    │   └── UndecodableError    an image file whose pixels cannot be decoded
    ├── StorageError            a location cannot be read or written (exit 1)
    │   ├── IntegrityError      stored bytes do not match their digest
    │   ├── CommitConflictError another run committed a different version first
    │   └── TransientError      may pass on another try, so it is retried
    ├── DivergedError           training gave infinite numbers or NaN (exit 1)
    ├── LostRankError           one of the processes that train together died; retried (exit 1)
    ├── RefusedError            no gain or a leak, where that is to fail (exit 3)
    ├── LabelDamageError        a policy changes labels, where that is to fail (exit 3)
    ├── CrashedTooOftenError    a run that crashed several times in a row (exit 1)
    └── EmptyClassError         a class has too few records (exit 2)

Each message says what was expected, what was given and what to do. Values are keyword arguments and stay as
attributes, also after pickling.
"""

from typing import Any


class AugmentError(Exception):
    """Root of all errors that this package raises on purpose.

    ``values`` (column, path, counts …) are kept as attributes.
    """

    exit_code = 1

    def __init__(self, message: str, **values: Any) -> None:
        super().__init__(message)
        self.message = message
        self.values = values
        for name, value in values.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ drops keyword arguments, and process workers send errors pickled.
        return (_rebuild, (type(self), self.message, self.values))


def _rebuild(cls: type[AugmentError], message: str, values: dict[str, Any]) -> AugmentError:
    return cls(message, **values)


class ParameterError(AugmentError):
    """A parameter has a value that cannot be used."""

    exit_code = 2


class MissingExtraError(ParameterError):
    """An optional part of the package is needed and not installed."""


class InputError(AugmentError):
    """The source or the hold-out cannot be used as it is."""

    exit_code = 2


class EmptyFileError(InputError):
    """A file of the source holds no records."""


class SchemaError(InputError):
    """Columns or types are not as expected."""


class LabelError(InputError):
    """The label column is missing, or its values cannot be labels."""


class SourceChangedError(InputError):
    """An object of the source changed since it was listed."""


class UndecodableError(InputError):
    """An image cannot be decoded.

    ``reason`` is short and the same for every such file; the message has details.
    """

    reason: str


class StorageError(AugmentError):
    """A location cannot be read or written."""


class IntegrityError(StorageError):
    """Stored bytes are missing or do not match their recorded digest."""


class CommitConflictError(StorageError):
    """Another run committed a different version from the same parent first."""


class TransientError(StorageError):
    """A passing fault: a timeout, a reset connection, a throttling store."""


class DivergedError(AugmentError):
    """The training loss is no longer a finite number."""


class LostRankError(AugmentError):
    """One of the processes that train a network together has ended early."""


class RefusedError(AugmentError):
    """No gain, or a leak, was found, and ``evaluation.on_no_gain`` or ``quality.on_leak`` is ``fail``."""

    exit_code = 3


class LabelDamageError(AugmentError):
    """A policy changes what images show, and ``classic.on_label_damage`` is ``refuse``."""

    exit_code = 3


class CrashedTooOftenError(AugmentError):
    """A deployed run crashed several times in a row, so it is not restarted."""


class EmptyClassError(AugmentError):
    """A class has too few records for a step."""

    exit_code = 2
