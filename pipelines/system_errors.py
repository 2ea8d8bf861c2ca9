"""The sentence for what the system refuses: a path, the disk, memory, open files."""

import errno
import sys

NOT_USABLE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
NOT_USABLE_CODES = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
AGAIN = "give the same command again, without a `--from`: it goes on from what is saved"


def of_the_system(error: OSError) -> tuple[str, int]:
    """The sentence and exit code of what the system refused; ("", _) for a defect of ours."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full{where}; make room and {AGAIN}.", 1
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            f"Too many files are open at a time{where}; raise the limit (`ulimit -n 8192`) or take "
            f"fewer coders, and {AGAIN}.",
            1,
        )
    if error.errno == errno.EIO:
        return (
            f"The disk could not be read or written{where}: {error.strerror}; see to the disk and "
            f"{AGAIN}.",
            1,
        )
    if isinstance(error, NOT_USABLE) or error.errno in NOT_USABLE_CODES:
        return f"{error.strerror}{where}; give a path that can be read and written.", 2
    return "", 2


def of_memory(error: MemoryError | RuntimeError) -> str:
    """The sentence of an allocation that failed; "" for another error."""
    torch = sys.modules.get("torch")  # not imported for this: what never was did not raise
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        what, where = "The GPU's memory", "; or choose `model.device=cpu`"
    elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        what, where = "The main memory", ""
    else:
        return ""
    return (
        f"{what} ran out; lower `train.batch`, `train.window`, `harvest.batch` or the coders' "
        f"`width`, or take fewer coders or sites at a time{where}."
    )
