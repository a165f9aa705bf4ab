"""Every command beside qemu-io's: what is printed, the exit code, and the images."""

from __future__ import annotations

import pytest

from tests.cli.differential import Outcome, Twins
from tests.cli.io.pair import blocks, run_block, run_stdin
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


SAME = """
-f qed a.qed

nope
nope 1 2
read
read 0
read 0 1 2
read 0 512
read  0   512
read	0	512
READ 0 512
r 0 512
r
w 0
t
? 1 2
d
q 1

-f qed a.qed
read x 512
read 0 x
read 0 99E
read 99999999999999999999999 1
read 0 3G
read 0 2147483648
read 1M 512
read 1048575 2
read 0 0
read 1M 0
read 2M 0
read -1 512
read - 1
read --foo 1
read -q -- -1 1
read -P 0 1 2 3
read '0' 512
read 0 1k;

-f qed b.qed
read -P 0 0 512
read -P 1 0 512
read -P 1 64k 64k
read -P 1 65535 2
read -P x 0 512
read -P 256 0 512
read -P 0x1ff 0 512
read -P -1 0 512
read -P 010 0 512
read -P 08 0 512
read -P 5x 0 512
read -P 0xg 0 512
read -P 0x0 0 512
read -P +0 0 512
read -P1 64k 1
read -P 1 -P 0 0 1
read -P

-f qed b.qed
read -P 0 -s 10 0 512
read -P 0 -s 600 0 512
read -P 0 -s 10 -l 600 0 512
read -P 0 -s 10 -l 20 0 512
read -P 1 -s 10 -l 20 0 512
read -P 1 -s 1k -l 512 65024 2k
read -P 1 -s x 0 512
read -P 1 -l x 0 512
read -s 10 0 512
read -l 10 0 512
read -Pl 1 2
read -P 0 -l 512 0 512
read -P 0 -s 512 0 512

-f qed b.qed
read -b 0 512
read -b 1 512
read -b 0 1
read -p 0 512
read -C 0 512
read -q 0 512
read -v 0 40
read -v 65530 13
read -qv 0 40
read -Cv 0 17
read 0 512 -q
read 0 -v 16
read -- 0 512
read -z 0 512
read -qz 0 512

-f qed b.qed
readv 0
readv 0 512
readv 0 512 512
readv -v 65533 3 4
readv 0 x
readv x 0
readv 0 3G
readv 0 1G 1G
readv 0 1G 1G 1G
readv 0 0
readv 0 0 0
readv -P 1 0 512 512
readv -P 1 64k 512 512
readv -C 0 512 512
readv -q 0 512 512
readv -x 0 1
readv -P x 0 1
readv -q 0
readv 0 513 511
readv 1M 512
readv 1048575 1 1

-f qed a.qed
read 0 1.5k
read 0 1.5
read 0 1.5b
read 0x200 0x200
read 010 1b
read 0 1K
read 0 1kb
read 0 1KiB
read 0 1.k
read 0 .5k
read 0 1.0
read 0 1.
read 0 1e3
read 0 1_0
read 0 inf
read 0 1kk
read 0 1k.5
read 0 +512
read 0 0.1k
read 0 1.999999999k
read 0 0.99999999999999999999k
read 0 0.00001k
read 0 0x
read 0 0xg
read 0 0x1.8k
read 0 0x1b
read 0 0x1k
read 0 0X1E
read 0 1.1.1k
read 0 1.5e1k
read 0 0.5b
read 0 0.0b
read 0 1٣
read 8E 0
read 7E 0
read 18446744073709551615 0
read 18446744073709551616 0
read 18446744073709551616x 0
read 18446744073709551616k 0
read 18446744073709551616.5 0
read 9223372036854775807 0
read 9223372036854775808 0
read 0x8000000000000000 0
read 0x1ffffffffffffffff 0

-f qed a.qed
write
write 0
write 0 512
write -P 5 0 64k
read -vP 5 0 20
write -P 6 100k 200k
write 1000 3
read -v 998 7
write -p 0 512
write -C 0 512
write -q 512k 512
write 0 0
write 0 1 2
write x 1
write 1 x
write -P 0xfff 0 1
write -x 0 1
write -s
map

-f qed a.qed
write -z 0 64k
write -zu 64k 64k
write -z 200k 100
write -zq 512k 64k
write -zC 512k 64k
map
write -P 7 0 1M
write -z 0 128k
read -P 0 0 128k
write -z 130k 1
read -v 133119 3
write -z 1M 512
write -z 1M 0
write -z 0 0
write -zf 0 64k
map

-f qed a.qed
write -zn 0 64k
write -zn 1 5
write -zn 512 0
write -zn 513 0
write -zun 0 64k
write -u 0 512
write -n 0 512
write -un 0 512
write -z -P 1 0 64k
write -z -s pat 0 512
write -P 1 -s pat 0 512
write -b -z 0 512
write -bf 0 512
write -cf 0 512
write 0 3G
write -z 0 3G
write -zn 0 3G
write -z 0 2147483648
write 1M 512
write 1048575 2

-f qed a.qed
write -s pat 0 10
read -v 0 12
write -s pat 0 2
write -s none 0 512
write -s nope 0 512
write -s . 0 512
write -s nope 1M 512
write -s pat 1M 512
write -c 0 512
write -c 0 64k
write -c 0 1
write -c 1 512
write -c 1M 1
write -c -z 0 512
write -zc 1M 1
write -b 0 512
write -b 1 512
write -b 0 1
write -b -c 0 512
write -f 0 512
write -fq 0 512

-f qed a.qed
writev
writev 0
writev 0 512 512
writev -P 9 1 2 3
read -v 0 8
writev -fq 0 1
writev -C 0 1
writev 0 x
writev 0 2G
writev 0 1G 1G
writev -z 0 1
writev 1M 1
writev -q 1
writev 0 0 0 1

-f qed a.qed
aio_write 0 512
aio_flush
aio_write -P 3 64k 64k 10
aio_flush
aio_write -z 128k 64k
aio_flush
aio_write -zu 192k 64k
aio_flush
aio_write -f 0 512
aio_flush
aio_write -q 0 1
aio_flush
aio_write -C 0 1
aio_flush
aio_write -zf 0 64k
aio_flush
aio_write 1M 1
aio_flush
aio_write -z 1M 1
aio_flush
map

-f qed a.qed
aio_write -u 0 512
aio_write -z 0 512 512
aio_write -i 0 512
aio_write -i x 512
aio_write x 1
aio_write 0 x
aio_write -zP 300 0 1
aio_write -x 0 1
aio_write -z x 0
aio_write -z 0 x
aio_write 0 2G
aio_write
aio_write 0
aio_write -q 0
aio_flush 1
aio_flush

-f qed b.qed
aio_read 0 512
aio_flush
aio_read -v 65530 10 10
aio_flush
aio_read -P 1 0 512
aio_flush
aio_read -P 1 64k 512 512
aio_flush
aio_read -C 0 512
aio_flush
aio_read -qv 0 20
aio_flush
aio_read 1M 512
aio_flush
aio_read 0 0
aio_flush

-f qed b.qed
aio_read -i 0 512
aio_read -x 0 1
aio_read
aio_read 0
aio_read 0 2G
aio_read 0 x
aio_read x 0
aio_read -P x 0 1
aio_read -z 0 1

-f qed b.qed
aio_read 1M 512

-f qed a.qed
aio_write -P 1 0 64k
length
read -q 0 1

-f qed b.qed
aio_read 64k 10
length
info

-f qed b.qed
info
info 1
i
length
l
length x
map
map x
alloc
alloc 0
a 64k
alloc 0 1M
alloc 64k 1M
alloc 60k 8k
alloc 60k 8000
alloc 3
alloc 0 2M
alloc 2M
alloc 1M
alloc 1M 512 3
alloc x
alloc 0 x
alloc 0 0
alloc 0 9E
alloc -1

-f qed ov.qed
info
map
alloc 0 1M
alloc 64k 1M
alloc 64k 900
alloc 128k 128k
read -P 3 128k 64k
write -P 9 130k 1
read -v 133118 4
write -z 128k 64k
map
read -P 0 128k 64k
truncate 2M
map
read -P 0 1M 1M

-f qed e.qed
map
length
info
alloc 0
alloc 0 512
read 0 0
read 0 1
write 0 1
truncate 64k
write 0 1
map

-f raw odd.raw
map
length
info
alloc 0 1M
read 0 1000
read -v 990 30
read 0 1024
read 0 1025
read -b 0 512
write -b 0 512
write -c 0 512
write -P 1 0 512
truncate 2048
length
read -v 998 4
write -z 0 512
read -P 0 0 512
discard 0 512
truncate 512
length
map
truncate -m metadata 2M
truncate -m foo 2M

-f raw base.raw
discard 0 64k
map
truncate 512k
length
truncate -m full 1M
length
truncate -m falloc 2M
length

-f qed a.qed
truncate
truncate 2M
length
truncate 512k
truncate 1000
truncate x
truncate 0
truncate -m off 3M
truncate -m falloc 4M
truncate -m metadata 4M
truncate -m foo 4M
truncate -m full 4M
truncate 100P
truncate -m
truncate -x 1
truncate 1 2
truncate 1 2 3 4
truncate 4M -m off
t 4M
length
map

-f qed b.qed
discard 0 512
discard 0 1
discard 3 3
discard 1M 512
discard 0 3G
discard 0 2G
discard -q 0 512
discard -C 0 512
discard -x 0 1
discard x 1
discard 0 x
discard
discard 0
discard 0 0
discard 0 1 2
read -P 1 64k 64k
map

-f qed a.qed
sleep
sleep x
sleep 1
sleep -1
sleep 1.5
sleep 10ms
sleep 0x1
sleep 01
sleep 08
sleep 1 2
flush
f
flush 1

-f qed a.qed
break
break a
break read_aio A
break nope A
break a b c
resume A
resume
remove_break A
remove_break
wait_break

-f qed a.qed
close x
close
close
flush
read 0 512
read
write -x
info
length
map
alloc 0
truncate 1
break a b
resume a
aio_flush
reopen
discard 0 1
sleep 1
help flush
open a.qed
length
open b.qed
c
o -r a.qed
l

-f qed a.qed
quit 1
length

-f qed a.qed
q
nope

a.qed
help
help foo
help q
help quit
help ?
help a
help alloc
help map
help sleep
help break
help resume
help remove_break
help wait_break
help info
help abort
help aio_flush
help truncate
help close
?
help -x
help read write

a.qed
sigraise
sigraise x
sigraise 0
sigraise 10
sigraise 13
sigraise 17
sigraise 99

-r -f qed a.qed
write 0 512
write 0
write -x 0 1
write x 1
writev 0 1
aio_write 0 1
aio_write -i 0 1
truncate x
truncate 2M
discard 0 1
flush
read 0 512
reopen -w
write 0 512
map

-f qed a.qed
reopen
reopen -r
write 0 512
reopen -w
write 0 512
reopen -r -w
reopen -r -r
reopen -ww
reopen -c none
write 512 512
reopen -c foo
reopen -c unsafe
reopen -c writeback
reopen -c directsync
reopen -x
reopen -o
reopen -c
reopen a
read -v 0 4

-f qed a.qed
reopen -o x=y
reopen -o driver=qed
reopen -o driver=raw
reopen -o file.filename=b.qed
reopen -o cache.writeback=off
reopen -o cache.direct=off
reopen -o cache.direct=foo
reopen -o cache.no-flush=on
reopen -o read-only=off
reopen -o discard=unmap
reopen -o detect-zeroes=on
reopen -o node-name=x
reopen -o force-share=on
reopen -r -o read-only=off
reopen -c none -o cache.direct=off
reopen -o file.cache.direct=on
write 0 512

b.qed
open
open a.qed
open -x a.qed
close
open nope
length
open -r
open -r a.qed b.qed
open -t foo a.qed
open -d foo a.qed
open -i foo a.qed
open -o driver=foo a.qed
open -o foo=1 a.qed
open -o driver=qed
open -o
open -k a.qed
open -U a.qed
open -C -r a.qed
open -o driver=qed,file.filename=a.qed b.qed
open -o driver=qed,file.filename=nope
open junk.qed
length

b.qed
close
open -o driver=raw a.qed
length
info
close
open -o driver=qed a.qed
length
close
open -o driver=qed,file.filename=a.qed
length
close
open -n -U -r a.qed
length
close
open -n a.qed
write 0 512
close
open -t writeback -d unmap -i threads a.qed
write -P 5 0 512
close
open -t unsafe a.qed
read -P 5 0 512
close
open -nk a.qed
length
close
open -n -i native -d ignore a.qed
length

-f qed -C ov.qed
read 128k 1k
map
aio_read 200k 1
aio_flush
map
readv 0 1 2
map
read 0 1M
map
info

-n b.qed
write 0 512
read -P 1 65k 1k
aio_write 1 1
aio_flush
flush

-t none b.qed
write -P 3 0 512
read -P 3 0 512

-t unsafe -d unmap -i threads -m b.qed
write -P 3 0 512
read -P 3 0 512

-f qed -s ov.qed
write -P 7 0 64k
write -P 8 140k 10
write -z 300k 1
read -P 7 0 64k
read -v 143358 14
read -P 3 160k 1k
aio_write 512k 1
aio_flush
map
alloc 0 1M
info
length
truncate 2M
length
flush

-s -C ov.qed
read 128k 1k
map

-s -r b.qed
write 0 512
read -P 1 64k 1

-s dirty.qed
read -P 1 64k 64k
write 0 1

-r dirty.qed
read -P 1 64k 64k

dirty.qed
read -P 1 64k 64k
map

--image-opts driver=qed,file.filename=a.qed
info
write 0 1

--image-opts driver=raw,file.driver=qed,file.file.filename=ov.qed
map
alloc 0 1M
alloc 60k 8k
write -P 5 512k 64k
map
truncate 2M
map

--image-opts driver=raw,offset=32k,size=512k,file.driver=qed,file.file.filename=b.qed -r
map
alloc 0 1M
alloc 32k 512

--image-opts driver=blkdebug,image.driver=raw,image.file.driver=qed,image.file.file.filename=b.qed
map
alloc 0 64k

--image-opts driver=raw,file.filename=a.qed -r
info
length

-f raw -r a.qed
length
map

json:{"driver":"qed","file":{"driver":"file","filename":"b.qed"}}
info
map

--read-only --format=qed a.qed
write 0 1

--cmd length --cache=none a.qed
length
"""


@pytest.mark.parametrize(("options", "commands"), blocks(SAME))
def test_commands_like_qemu_io(twins: Twins, options: str, commands: list[str]) -> None:
    run_block(twins, options, commands)


@pytest.mark.parametrize(
    "options",
    """
    -t foo a.qed
    -d foo a.qed
    -i foo a.qed
    -f foo a.qed
    -f raw nope
    nope
    junk.qed
    -f qed base.raw
    -k a.qed
    -i native a.qed
    -C -r a.qed
    -U a.qed
    --object foo a.qed
    --image-opts -f qed a.qed
    --image-opts driver=qed,file.filename=nope
    --image-opts driver=qed
    """.split("\n")[1:-1],
)
def test_opening_refused_like_qemu_io(twins: Twins, options: str) -> None:
    run_block(twins, options.strip(), ["length"])


@pytest.mark.parametrize(
    "options", ["-x a.qed", "-rx a.qed", "-qf", "-f", "-r -c", "--nope", "--cache"]
)
def test_wrong_option_same_words_without_usage(twins: Twins, options: str) -> None:
    words = options.split()
    real, ours = (call(words, tool="qemu-io") for call in (twins.theirs, twins.ours))
    # The C library puts argv[0] before it as it was given.
    assert ours.err.splitlines() == [real.err.splitlines()[0].rpartition("/")[2]]
    assert (ours.code, ours.out) == (real.code, "")


@pytest.mark.parametrize(
    "script",
    [
        "",
        "\n",
        "read 0 512\n",
        "read 0 512",
        "nope\nlength\n",
        "length\nquit\nread 0 512\n",
        "\n\n  \nlength\n",
        "length\nclose\nlength\n",
        "close\nopen b.qed\nlength\nclose\nopen -r a.qed\nwrite 0 512\n",
        "write 0 512\t\n",
        "read 0 512\r\n",
        "# comment\nlength; length\n",
        "read 0 \0 512\nlength",
        "help nope\nhelp quit\n",
        "aio_write -P 3 0 64k\naio_flush\nread -P 3 0 64k\nmap",
        "reopen -r\nwrite 0 512\nreopen -w\nwrite 0 512\n",
        "r\xe9ad 0\nlength",
    ],
)
def test_stdin_like_qemu_io(twins: Twins, script: str) -> None:
    run_stdin(twins, "-f qed a.qed", script)


def test_stdin_without_file_like_qemu_io(twins: Twins) -> None:
    script = "info\nsleep 1\nopen -s b.qed\nwrite -P 9 0 64k\nread -P 9 0 64k\nclose\nopen b.qed\n"
    run_stdin(twins, "", script + "read -P 0 0 64k\nmap\n")


def test_commands_given_stdin_is_not_read(twins: Twins) -> None:
    assert twins.ours(["-c", "length", "a.qed"], tool="qemu-io", stdin="nope\n").out == "1 MiB\n"


def test_no_file_commands_say_so(twins: Twins) -> None:
    run_block(twins, "", ["length", "help q", "write 0 1"])


def test_reopen_past_the_cache_twice_leaves_reads_alone(twins: Twins) -> None:
    """In qemu-io the second one leaves reads of parts of sectors broken."""
    words = [word for _ in range(2) for word in ("-c", "reopen -c none")]
    words += ["-c", "reopen -c writeback", "-c", "read -q 189682 1", "ov.qed"]
    assert twins.theirs(words, tool="qemu-io").out == "read failed: Invalid argument\n"
    assert twins.ours(words, tool="qemu-io") == Outcome(0, "", "")
