"""What ``qedasync bench`` takes: fio's words and qemu-img's, and which of both forms is meant."""

from __future__ import annotations

from collections.abc import Sequence

from qedasync.cli.common import BACKING, CACHES, FORCE_SHARE, FORMAT, IMAGE_OPTS
from qedasync.cli.options import Example, Option, Parsed, ToolError, Verb

__all__ = ["FIO_WORDS", "VERB", "check_words", "means_qemu", "with_verify_value"]

RW = (
    "read", "write", "randread", "randwrite", "rw", "readwrite", "randrw", "trim", "randtrim",
)  # fmt: skip
CHECKS = (
    "crc32c", "crc32c-intel", "crc64", "crc32", "crc16", "crc7", "xxhash", "md5", "sha1", "sha256",
    "sha512", "sha3-256", "sha3-512", "meta", "pattern", "stamp",
)  # fmt: skip
"""fio's words for ways to check; here they all mean a stamp, which tells more than a checksum."""

_BARE_VERIFY = "--verify=stamp"

AIO = ("native", "threads", "io_uring")

_FIO = (
    Option("", "rw", "KIND", "kind of operations; randrw unless said, or randread where writing"
           " is not allowed", RW),
    Option("", "bs", "SIZE[,SIZE]", "bytes of an operation, or of a read and of a write (or trim);"
           " 4k unless said"),
    Option("", "iodepth", "N", "operations in flight, of each job; 64 unless said"),
    Option("", "numjobs", "N", "jobs beside each other; the report has their sum"),
    Option("", "runtime", "TIME", "how long: seconds, or with ms, s, m, h or d; 5 unless"
           " --number_ios limits the run"),
    Option("", "time_based", "", "as it always is: the run time is used to its end"),
    Option("", "number_ios", "N", "operations of each job; no limit unless said"),
    Option("", "rwmixread", "PERCENT", "share of reads where reads and writes mix; 70 unless said"),
    Option("", "offset", "SIZE", "where in the image to begin"),
    Option("", "size", "SIZE", "bytes of the image to work on, to its end unless said; also the"
           " size of the image that is made"),
    Option("", "verify", "[HOW]", "stamp what is written, check what is read, read all of it at the"
           " end and check the tables; fio's words for HOW all mean that", CHECKS),
    Option("", "seed", "N", "of the random numbers"),
)  # fmt: skip
_AROUND = (
    Option("", "write", "", "allow writing to the given image"),
    Option("", "keep", "", "do not remove the image made"),
    Option("", "cache", "MODE", "when writes are durable; writeback unless said", CACHES),
    Option("", "storage", "KIND", "what moves the bytes; in memory it is a copy, and changes are"
           " forgotten",
           ("auto", "posix", "aiofiles", "memory")),
    Option("", "loop", "KIND", "event loop; uvloop where it is, unless said",
           ("asyncio", "uvloop")),
    Option("", "output", "FORM", "the report's form", ("human", "json")),
    Option("", "output-format", "FORM", "the same, fio's word; normal is human",
           ("normal", "json")),
    Option("", "html", "FILE", "write the report as a page with plots, too"),
)  # fmt: skip
_BOTH = (
    FORMAT,
    IMAGE_OPTS,
    FORCE_SHARE,
    BACKING,
    Option("", "flush-interval", "N", "flush after so many writes; 0 for never"),
    Option("", "pattern", "BYTE", "what is written; random bytes unless said, qemu-img's form 0"),
)
_QEMU = (
    Option("c", "", "COUNT", "number of requests; 75000 unless said"),
    Option("d", "", "DEPTH", "requests in flight; 64 unless said"),
    Option("s", "", "SIZE", "bytes of a request; 4k unless said"),
    Option("S", "", "STEP", "from one request's start to the next one's; as -s unless said"),
    Option("o", "", "OFFSET", "where the first one starts"),
    Option("w", "", "", "write, which needs no other permission"),
    Option("", "no-drain", "", "do not wait for the requests in flight before a flush"),
    Option("t", "", "CACHE", "the cache mode", CACHES),
    Option("i", "", "AIO", "taken, and makes no difference: native needs -t none", AIO),
    Option("n", "", "", "the same as -i native"),
    Option("q", "", "", "no progress; qemu-img's form has none"),
)

FIO_WORDS = frozenset(option.key for option in (*_FIO, *_AROUND))
"""What makes it fio's form, and what a link named qemu-img does not know."""

VERB = Verb(
    name="bench",
    summary="measure concurrent reads and writes",
    names="[FILENAME]",
    options=(*_FIO, *_AROUND, *_BOTH, *_QEMU),
    text="""\
    In fio's words it runs a workload on an image and tells rates and latencies as fio does, as
    text, as JSON (the keys are fio's) or as a page with plots. Without FILENAME a real file system
    is made into an image, and removed afterwards. A given image is only read, unless --write
    allows more. Ctrl-C ends the run early and tells what was measured until then.

    With options of qemu-img bench and none of fio's, or called as qemu-img, it does and says what
    qemu-img bench does: it sends that many requests and tells how long they took. Then -w writes
    to the image. Beside fio's words, the letters mean what fio's words for the same thing do.
    """,
    examples=(
        Example("qedasync bench", "An image made for the purpose, read and written"),
        Example("qedasync bench disk.qed --runtime 10 --html report.html",
                "Random reads of an image, and a page to show"),
        Example("qedasync bench disk.qed --write --rw randrw --bs 16k --iodepth 32 --verify",
                "Mixed, and checked; overwrites what is in the image"),
        Example("qedasync bench -c 10000 -d 32 -t none -f qed disk.qed",
                "As qemu-img bench measures"),
    ),
)  # fmt: skip


def with_verify_value(words: Sequence[str]) -> list[str]:
    """The words with a value for every ``--verify``, which may go without."""
    end = words.index("--") if "--" in words else len(words)
    found: list[str] = []
    for word in words[:end]:
        if word in CHECKS and found[-1:] == [_BARE_VERIFY]:
            found[-1] = f"--verify={word}"
        else:
            found.append(_BARE_VERIFY if word == "--verify" else word)
    return [*found, *words[end:]]


def means_qemu(parsed: Parsed, link: str | None) -> bool:
    """Whether qemu-img's form is meant: called as that, or with its options and none of fio's."""
    if link is not None:
        return True
    given = {key for key, _ in parsed.given}
    return bool(given and parsed.names and not given & FIO_WORDS)


def check_words(parsed: Parsed, words: Sequence[str]) -> None:
    """Raise for what qemu-img bench does not know; ``words`` is how it was written."""
    for key in (key for key, _ in parsed.given if key in FIO_WORDS):
        for word in words:
            if word.startswith("--") and f"--{key}".startswith(word.partition("=")[0]):
                raise ToolError(f"unrecognized option '{word}'")
