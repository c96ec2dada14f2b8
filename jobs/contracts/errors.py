"""What can go wrong in a way that a user can mend: one class a failure, shown as a message and never as a trace."""

import errno
import sys
from collections.abc import Callable
from typing import ClassVar

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NightjarError(Exception):
    """A failure whose message says what was expected, what came, where, and what to do.

    The command line prints the message and ends with `status`.
    """

    status: ClassVar[int] = 1


class UnknownStep(NightjarError):
    """A name that is no step of the plan."""


class BadDay(NightjarError):
    """A text that is no day, or a range whose end lies before its beginning."""


class BadSettings(NightjarError):
    """A settings file that is missing, can't be read, or holds a value that does not fit."""


class NotReady(NightjarError):
    """A table, or a day of it, that a step needs and that has not been made yet."""


class NotYet(NightjarError):
    """A day that a step has not made yet: whoever waits for it may ask again (EX_TEMPFAIL of sysexits.h)."""

    status = 75


class EmptyLanding(NightjarError):
    """A landing folder that holds nothing to read."""


class LandingChanged(NightjarError):
    """A landing file that is still being written."""


class UnknownReason(NightjarError):
    """A word that is no reason of the quarantine."""


class FolderTaken(NightjarError):
    """A folder to be written that holds something else."""


class FolderUnwritable(NightjarError):
    """A folder to be written that can't be, or a disk that refuses under way."""


class LibraryMissing(NightjarError):
    """A library that only some commands need, and that is not installed."""


class ContractBroken(NightjarError):
    """A table whose columns differ from its contract."""


class TooLittleData(NightjarError):
    """Data too small to learn or judge from."""


class TrainingFailed(NightjarError):
    """A training whose loss is no longer a number."""


class Interrupted(NightjarError):
    """A training that SIGTERM ended: saved, to be gone on with. Nothing has failed."""

    status = 0


class NotShared(NightjarError):
    """A step that torchrun has started in several processes, and that is for one."""


class OtherStudy(NightjarError):
    """A record of tuning that can't be gone on with: of other data or settings, or something else altogether."""


class BadRequest(NightjarError):
    """A request for recommendations that can't be read."""


class FutureData(NightjarError):
    """An input that already knows what happened after the day it should stand for."""


class UnknownFormat(NightjarError):
    """A name that is no format of a public data set, or of an export."""


class BadSource(NightjarError):
    """A public data set whose files are missing, or hold something else than the format says."""


class LandingUnwritable(NightjarError):
    """A landing folder that can't be written: it holds something already, or the disk refuses."""


class LakeUnwritable(NightjarError):
    """A lake that can't be written to."""


class StoreUnreachable(NightjarError):
    """A bucket that isn't there, a store that doesn't answer, or credentials that it doesn't take."""


class ConcurrentWrite(NightjarError):
    """Another run has changed what this one was about to replace. To do the step again, from what is there now, is harmless."""


class AuditFailed(NightjarError):
    """Rows that break a check; nothing is published."""


class MachineUnfit(NightjarError):
    """A machine that lacks something that a night needs."""


class OlderThanServed(NightjarError):
    """Lists older than those that are served."""


class EngineMissing(NightjarError):
    """Java or the Delta JARs are not there, or do not fit."""


class TrackingFailed(NightjarError):
    """The experiment record can't be written."""


class ProcessFailed(NightjarError):
    """A process that Nightjar started ended with a failure."""


def exit_status(work: Callable[[], None]) -> int:
    """Do `work`; return 0, or print the message of a NightjarError, or of a disk that is full, to stderr and return its status."""
    try:
        work()
    except NightjarError as error:
        print(f"nightjar: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(f"nightjar: {error}. Make room, and run the same again: every table holds what it held before, or the new rows whole.", file=sys.stderr)
        return 1
    return 0
