"""Where the landing folder and the lake lie: a folder of this machine, or of an S3-compatible store, whose paths answer as local ones do.

Of `pathlib.Path`, an `S3Path` has what Nightjar asks for. An object appears whole or not at all, so what is written to a store needs no
draft beside it. Credentials come from AWS's environment variables, or from the role that its machines have; no setting holds one.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from jobs.contracts.errors import FolderTaken, FolderUnwritable, LakeUnwritable, StoreUnreachable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pafs
    from obstore.store import S3Config

    from jobs.settings import S3

SCHEME = "s3://"
S3A_SCHEME = "s3a://"  # what Hadoop calls it
_CONNECT_SECONDS, _SILENT_SECONDS, _ATTEMPTS = 3, 10, 5


class Stat(NamedTuple):
    """Of `os.stat_result`, what an object has."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class S3Path:
    """An object, or all that lies below a prefix: `key` is `bucket/a/b`. What a store refuses raises StoreUnreachable."""

    key: str
    s3: S3
    listed: bool = field(default=False, compare=False)  # a listing has named it, so it is an object

    def __str__(self) -> str:
        return SCHEME + self.key

    def __truediv__(self, name: str | PurePosixPath) -> S3Path:
        return S3Path(f"{self.key}/{name}", self.s3)

    @property
    def bucket(self) -> str:
        return self.parts[0]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.key.split("/"))

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> S3Path:
        return S3Path(self.key.rpartition("/")[0], self.s3)

    def absolute(self) -> Self:
        return self

    def resolve(self) -> Self:
        """Itself: a store has no links."""
        return self

    def as_uri(self) -> str:
        return str(self)

    def relative_to(self, other: S3Path) -> PurePosixPath:
        return PurePosixPath(self.key).relative_to(other.key)

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        return self.listed or self._info().is_file

    def is_dir(self) -> bool:
        import pyarrow.fs as pafs

        return bool(self._info().type == pafs.FileType.Directory)

    def stat(self) -> Stat:
        """Raises FileNotFoundError when there is no such object."""
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(f"There is no object {self}.")
        return Stat(info.size, info.mtime_ns)

    def glob(self, pattern: str) -> Iterator[S3Path]:
        """What lies right below and has such a name, prefixes of others too."""
        found = (S3Path(info.path, self.s3, listed=info.is_file) for info in self._listing(recursive=False))
        return (path for path in found if fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str) -> Iterator[S3Path]:
        """The objects below, at any depth, that have such a name."""
        found = (S3Path(info.path, self.s3, listed=True) for info in self._listing(recursive=True) if info.is_file)
        return (path for path in found if fnmatchcase(path.name, pattern))

    def open(self, mode: str) -> _Stream:
        """A stream of the bytes of the object. Raises FileNotFoundError when there is none."""
        assert mode == "rb"
        with self._answers():
            return _Stream(self, filesystem(self.s3).open_input_stream(self.key, compression=None))  # else Arrow unpacks by the name

    def read_bytes(self) -> bytes:
        with self.open("rb") as stream:
            return stream.read()

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        with self._answers(), filesystem(self.s3).open_output_stream(self.key, compression=None) as stream:
            stream.write(content)

    def write_text(self, content: str) -> None:
        self.write_bytes(content.encode())

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a store has objects alone."""

    def unlink(self, missing_ok: bool = False) -> None:
        with self._answers():
            if not missing_ok or self._info().is_file:
                filesystem(self.s3).delete_file(self.key)

    def _listing(self, recursive: bool) -> list[pafs.FileInfo]:
        import pyarrow.fs as pafs

        prove_reachable(self)
        with self._answers():
            infos: list[pafs.FileInfo] = filesystem(self.s3).get_file_info(pafs.FileSelector(self.key, recursive=recursive, allow_not_found=True))
        return infos

    def _info(self) -> pafs.FileInfo:
        with self._answers():
            return filesystem(self.s3).get_file_info(self.key)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreachable(str(self), self.s3, error) from error


Location = Path | S3Path


class _Stream:
    """The bytes of an object. What goes wrong under way is the store's fault, and no damage to the file."""

    def __init__(self, path: S3Path, stream: pa.NativeFile) -> None:
        self._path = path
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int = -1) -> bytes:
        try:
            content: bytes = self._stream.read(None if size < 0 else size)
        except OSError as error:
            raise unreachable(str(self._path), self._path.s3, error) from error
        return content


def location(text: str, s3: S3) -> Location:
    """What a setting names: `s3://bucket/folder`, else a local path."""
    return S3Path(text.removeprefix(SCHEME).strip("/"), s3) if text.startswith(SCHEME) else Path(text)


def unreachable(what: str, s3: S3, error: Exception) -> StoreUnreachable:
    """The message for what a store, or the way to it, has refused."""
    told = re.sub(r"\x1b\[\d+m|↳|\s+", " ", str(error).partition("\n\nDebug source:")[0])
    reason = re.search(r"AWS Error (.+?)(?: \(Request ID|$)", told) or re.search(r"(?:Generic S3 error|Kernel error)\W+(.{1,300})", told)
    because = " ".join((reason[1] if reason else told[:300]).split()).rstrip(".")
    return StoreUnreachable(
        f"{what} can't be reached at {s3.endpoint or 'AWS'}: {because}. Look at `endpoint` and `region` of "
        "[s3] in nightjar.toml, whether that bucket is there, and at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, which have to be allowed to use it."
    )


def region(s3: S3) -> str:
    """That of the settings, else of the environment, else the one that stores of one's own answer to."""
    return s3.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


@cache
def filesystem(s3: S3, attempts: int = _ATTEMPTS) -> pafs.S3FileSystem:
    """Arrow's way to a store."""
    import pyarrow.fs as pafs

    return pafs.S3FileSystem(
        region=region(s3),
        endpoint_override=s3.endpoint or None,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_SILENT_SECONDS,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


def delta_options(s3: S3) -> dict[str, str]:
    """deltalake's way to a store. A commit is a PUT with `If-None-Match: *`: of two of one version, the store refuses one."""
    own = {"aws_endpoint": s3.endpoint, "aws_allow_http": str(s3.endpoint.startswith("http://")).lower()} if s3.endpoint else {}
    return own | {
        "aws_region": region(s3),
        "aws_conditional_put": "etag",
    }


def hadoop_options(s3: S3) -> dict[str, str]:
    """Spark's way to a store; S3A finds the credentials in the environment by itself."""
    own = {"fs.s3a.endpoint": s3.endpoint, "fs.s3a.connection.ssl.enabled": str(s3.endpoint.startswith("https")).lower()} if s3.endpoint else {}
    return own | {
        "fs.s3a.endpoint.region": region(s3),
        "fs.s3a.path.style.access": str(bool(s3.endpoint)).lower(),
    }


def prove_reachable(path: S3Path) -> None:
    """Raise StoreUnreachable, within seconds, when the store doesn't answer or has no such bucket; asked once a process."""
    _prove_reachable(path.bucket, path.s3)


@cache
def _prove_reachable(bucket: str, s3: S3) -> None:
    import pyarrow.fs as pafs

    try:
        found = filesystem(s3, attempts=1).get_file_info(bucket).type != pafs.FileType.NotFound
    except OSError as error:
        raise unreachable(f"The bucket {bucket}", s3, error) from error
    if not found:
        raise unreachable(f"The bucket {bucket}", s3, FileNotFoundError("AWS Error NO_SUCH_BUCKET"))


@cache
def prove_writable(root: S3Path) -> None:
    """Raise LakeUnwritable when nothing can be written below, or when the store would take two commits of one version; asked once a process."""
    from obstore.exceptions import BaseError

    prove_reachable(root)
    try:
        safe = _knows_conditions(root)
    except (BaseError, OSError) as error:
        raise LakeUnwritable(f"The lake {root} can't be written to. {unreachable(str(root), root.s3, error)}") from error
    if not safe:
        raise LakeUnwritable(
            f"The lake {root} is in a store that knows no conditional PUT (If-None-Match: *), so of two runs at once one could undo what the other "
            "has committed. Newer versions of most stores know it; else set `lake` in nightjar.toml elsewhere."
        )


def _knows_conditions(root: S3Path) -> bool:
    """Whether, of two PUTs of one new object, the store refuses one; asked by what deltalake commits with, and removed again."""
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
    from obstore.store import S3Store

    store = S3Store(
        root.bucket,
        config=cast("S3Config", delta_options(root.s3)),
        client_options={"connect_timeout": f"{_CONNECT_SECONDS}s", "timeout": f"{_SILENT_SECONDS}s"},
        retry_config={"max_retries": _ATTEMPTS - 1},
        disable_bulk_delete=True,  # not every store knows it
    )
    probe = "/".join([*root.parts[1:], f".probe-{uuid.uuid4().hex}"])
    try:
        for _ in range(2):
            obstore.put(store, probe, b"", mode="create")
        safe = False
    except AlreadyExistsError:
        safe = True
    except (BaseError, OSError) as error:
        with suppress(BaseError, OSError):  # it may be there nevertheless
            obstore.delete(store, probe)
        if not isinstance(error, GenericError) or "501 Not Implemented" not in str(error):
            raise
        return False  # it knows the condition so little that it refuses the whole request
    obstore.delete(store, probe)
    return safe


def write_whole(path: Location, content: str | bytes) -> None:
    """Write a file that appears whole; its folder is made. Raises OSError where it is local, StoreUnreachable where it isn't."""
    data = content.encode() if isinstance(content, str) else content
    if isinstance(path, S3Path):
        path.write_bytes(data)
        return
    unfinished = path.with_suffix(".unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_bytes(data)
    os.replace(unfinished, path)


@contextmanager
def whole_folder(folder: Location, last: str) -> Iterator[Path]:
    """A local folder, still to be made, whose files stand in `folder`, in the place of what stood there, once the block ends.

    A local one appears at once. In a store its file `last` is the first to go and the last to come: who sees it sees the others.
    """
    if isinstance(folder, S3Path):
        with tempfile.TemporaryDirectory(prefix="nightjar-") as temporary:
            draft = Path(temporary, folder.name)
            yield draft
            (folder / last).unlink(missing_ok=True)
            for path in sorted(draft.iterdir(), key=lambda path: path.name == last):
                (folder / path.name).write_bytes(path.read_bytes())
        return
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft beside it, which becomes `folder` once the block ends; should the block fail, nothing is left, the folders above included.

    Raises FolderTaken when there is something already, FolderUnwritable when the draft can't be made.
    """
    if SCHEME.rstrip("/") in folder.parts:
        raise FolderUnwritable(f"{folder} is no folder of this machine, and only there can this be written.")
    place = folder.resolve()
    taken = FolderTaken(f"{folder} holds something already. Name a new or an empty folder.")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise taken
    draft = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    above = [parent for parent in place.parents if not parent.exists()]
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise FolderUnwritable(f"{folder} can't be made: {error.strerror}. Name another folder, or mend the rights of the one above it.") from error
    try:
        yield draft
        try:
            draft.rename(place)  # over an empty one, and over no other
        except OSError as error:
            raise taken from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in above:
            with suppress(OSError):  # somebody else uses it by now
                parent.rmdir()
        raise


@contextmanager
def local_copy(path: Location, chunks: Iterator[bytes]) -> Iterator[Path]:
    """A local file with the bytes of `chunks`, which read `path` from end to end: itself, where it is one."""
    if isinstance(path, Path):
        for _ in chunks:
            pass
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="nightjar-") as copy:
        copy.writelines(chunks)
        copy.flush()
        yield Path(copy.name)
