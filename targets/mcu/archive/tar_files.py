"""Tar files that are the same byte for byte, and bounded reading of those that others wrote."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath

from tbn_compile.errors import ModelError, clean
from tbn_compile.loading import regular_file

MAX_FILE_BYTES = 2**28
MAX_MEMBERS = 4096

_NAME = re.compile(r"(\./)?[A-Za-z0-9_.+-]{1,100}(/[A-Za-z0-9_.+-]{1,100}){0,15}")


def write_tar(path: Path, files: Mapping[str, bytes], folders: tuple[str, ...], time: int) -> None:
    """Write an uncompressed tar file whose members start with `./`, as TVM's archives do.

    Args:
        path: of the new file.
        files: contents by relative name; their folders are added.
        folders: others, which may be empty.
        time: of every member, in seconds since 1970.
    """
    parents = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted({*files, *folders, *parents}):
            member = tarfile.TarInfo("." if name == "." else f"./{name}")
            member.mtime, member.uname, member.gname = time, "root", "root"
            if name in files:
                member.size, member.mode = len(files[name]), 0o644
                tar.addfile(member, BytesIO(files[name]))
            else:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)


def read_tar(path: Path) -> dict[str, bytes]:
    """The regular files of an untrusted tar file, by relative name without `./`.

    Raises:
        ModelError: if it is compressed, damaged or too large, or a member is no regular file or
            folder, bears a name that is not plain and relative, or comes twice.
    """
    if regular_file(path) > MAX_FILE_BYTES:
        raise ModelError(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}") from error
    files: dict[str, bytes] = {}
    try:
        # In memory a read ends with the file; from disk it first allocates what a header claims.
        with tarfile.open(fileobj=BytesIO(content), mode="r:") as tar:
            for name, member in _files(tar):
                if name in files:
                    raise ModelError(f"holds {name} twice")
                part = tar.extractfile(member)
                files[name] = part.read() if part else b""
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise ModelError("not an uncompressed tar file, or damaged") from error
    return files


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Each regular file, checked before the reader moves past it."""
    for count, member in enumerate(tar):
        if count == MAX_MEMBERS:
            raise ModelError(f"holds more than {MAX_MEMBERS} members")
        name = clean(member.name, 80)
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise ModelError(f"member {name} is not a regular file")
        if not _NAME.fullmatch(member.name) or ".." in PurePosixPath(member.name).parts:
            raise ModelError(f"member {name} is not named by a plain relative path")
        if not 0 <= member.size <= MAX_FILE_BYTES:
            raise ModelError(f"member {name} claims {member.size} bytes")
        yield member.name.removeprefix("./"), member
