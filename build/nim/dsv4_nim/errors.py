"""Why a command of the image stops, each with an exit code of its own, so that an operator's script can tell.

NimError
├── SettingError    2   a NIM_* variable, a flag or a profile id cannot be used
├── HardwareError   3   no profile fits this machine, or the chosen one does not
├── CacheError      4   the cache cannot be written, or its disk is full
├── DownloadError   5   a model cannot be fetched, or what came is not what was announced
└── PortError       6   a port is taken
"""

from __future__ import annotations

from dsv4_backend.errors import Dsv4Error


class NimError(Dsv4Error):
    """Base; `exit_code` is what the command ends with."""

    exit_code = 1


class SettingError(NimError):
    """A setting cannot be used."""

    exit_code = 2


class HardwareError(NimError):
    """This machine cannot run what was asked for."""

    exit_code = 3


class CacheError(NimError):
    """The cache cannot hold what it must."""

    exit_code = 4


class DownloadError(NimError):
    """A model could not be fetched whole."""

    exit_code = 5


class PortError(NimError):
    """A port is taken."""

    exit_code = 6
