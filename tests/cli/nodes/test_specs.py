"""What names lead to, beside qemu-img: the facts, or the refusal, in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.differential import Twins
from tests.cli.nodes import images
from tests.helpers import qemu

pytestmark = qemu.needs_qemu_7_2


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """One pair for all: nothing here writes."""
    return Twins(tmp_path_factory.mktemp("specs"), images.build)


@pytest.fixture(autouse=True)
def any_backing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has no policy."""
    monkeypatch.setenv("QEDASYNC_BACKING", "any")


def rows(text: str) -> list[str]:
    return text.strip("\n").split("\n")


NAMES = rows(
    """
a.qed
file:a.qed
./a.qed
foo:bar
foo://bar
a:b/c
host_device:a.qed
host_cdrom:a.qed
raw:a.qed
qed:a.qed
dir
file:dir
nope/x.qed
a.qed/x
file:
blkdebug:rules.conf:a.qed
blkdebug::a.qed
blkdebug:a.qed
blkdebug:
blkdebug::
blkdebug::nope
blkdebug:nope:a.qed
blkdebug:event.conf:a.qed
blkdebug::blkdebug::a.qed
blkdebug::file:a.qed
blkdebug:all.conf:blkdebug:rules.conf:a.qed
-f qed blkdebug::a.qed
-f raw blkdebug::a.qed
blkdebug::json:{"driver":"file","filename":"a.qed"}
-f blkdebug a.qed
-f blkdebug blkdebug::a.qed
-f file a.qed
-f host_device a.qed
-f host_cdrom a.qed
-f nope a.qed
-f raw a.qed
-f qed base.raw
-f file nope
-f file file:a.qed
-f host_device host_device:a.qed
-f file dir
-f raw dir
-f RAW a.qed
-f qed foo:x
-f foo nope
-f foo bar:nope
-f file foo:x
-f blkdebug nope
-f blkdebug file:a.qed
-U --image-opts driver=qed,file.filename=a.qed,force-share=off
-U --image-opts driver=qed,file.filename=a.qed,force-share=on
--image-opts driver=qed,file.filename=a.qed -f qed
-f qed -U a.qed
"""
)

JSON = rows(
    r"""
json:
json:{}
json:{"driver":"qed"}
json:{"driver":"qed","file":"a.qed"}
json:{"driver":"raw","file":{"driver":"file"}}
json:{"driver":"raw","file.driver":"file"}
json:{"driver":"file","filename":"a.qed"}
json:{"filename":"a.qed"}
json:{"file.filename":"a.qed"}
json:{"file":{"filename":"a.qed"}}
json:{"driver":"file"}
json:{"driver":"file","filename":""}
json:{"driver":"file","filename":"file:a.qed"}
json:{"file":{"filename":"file:a.qed"}}
json:{"file":{"driver":"file","filename":"file:a.qed"}}
json:{"driver":"qed","file":{"driver":"file","filename":"a.qed"},"x":1}
json:{"driver":"raw","file":{"driver":"file","filename":"a.qed"},"x":1}
json:{"driver":"qed","file":{"driver":"file","filename":"a.qed","x":1}}
json:{"driver":"qed","file":{"driver":"file","filename":"a.qed"},"x":{"y":1}}
json:{"driver":"nope","file":{"driver":"file","filename":"a.qed"}}
json:{"driver":"qed","file":{"driver":"nope","filename":"a.qed"}}
json:{"driver":5}
json:{"driver":true}
json:{"driver":null}
json:{"driver":"qed","file":null}
json:{"driver":"qed","file":5}
json:{"driver":"qed","file":true}
json:{"driver":"qed","file":[]}
json:{"driver":"qed","file":{}}
json:{'driver':'qed','file':{'driver':'file','filename':'a.qed'}}
json:{"driver":"qed","file.filename":"a.qed"}
json:{"driver":"qed","file":{"driver":"qed","file":{"driver":"file","filename":"a.qed"}}}
json:{"driver":"raw","file":{"driver":"qed","file":{"driver":"file","filename":"a.qed"}}}
json:{"driver":"raw","file":{"driver":"raw","file":{"driver":"file","filename":"a.qed"}}}
json:{"driver":"raw","file.file.filename":"a.qed","file.driver":"qed"}
json:{"driver":"raw","file.filename":"a.qed","offset":512}
json:{"driver":"raw","file.filename":"a.qed","offset":"512"}
json:{"driver":"raw","file.filename":"a.qed","offset":"1k","size":"64k"}
json:{"driver":"raw","file.filename":"a.qed","size":512}
json:{"driver":"raw","file.filename":"a.qed","size":"x"}
json:{"driver":"raw","file.filename":"a.qed","size":1000}
json:{"driver":"raw","file.filename":"a.qed","size":99999744}
json:{"driver":"raw","file.filename":"a.qed","offset":99999744}
json:{"driver":"raw","file.filename":"a.qed","offset":-1}
json:{"driver":"raw","file.filename":"a.qed","offset":1000}
json:{"driver":"raw","file.filename":"small.raw","offset":0}
json:{"driver":"raw","file.filename":"a.qed","offset":1.5}
json:{"driver":"raw","file.filename":"a.qed","offset":true}
json:{"driver":"raw","file.filename":"a.qed","size":0}
json:{"driver":"raw","file.filename":"a.qed"}
json:{"driver":"qed","file.filename":"a.qed","read-only":true}
json:{"driver":"qed","file.filename":"a.qed","read-only":"on"}
json:{"driver":"qed","file.filename":"a.qed","read-only":false}
json:{"driver":"qed","file.filename":"a.qed","read-only":"x"}
json:{"driver":"qed","file.filename":"a.qed","read-only":1}
json:{"driver":"qed","file.filename":"a.qed","auto-read-only":true}
json:{"driver":"qed","file.filename":"a.qed","auto-read-only":"x"}
json:{"driver":"qed","file.filename":"a.qed","cache.direct":true}
json:{"driver":"qed","file.filename":"a.qed","cache":{"direct":true}}
json:{"driver":"qed","file.filename":"a.qed","cache.no-flush":true}
json:{"driver":"qed","file.filename":"a.qed","cache.writeback":true}
json:{"driver":"qed","file.filename":"a.qed","cache.foo":true}
json:{"driver":"qed","file.filename":"a.qed","cache":"none"}
json:{"driver":"qed","file.filename":"a.qed","discard":"unmap"}
json:{"driver":"qed","file.filename":"a.qed","discard":"on"}
json:{"driver":"qed","file.filename":"a.qed","discard":"ignore"}
json:{"driver":"qed","file.filename":"a.qed","discard":"x"}
json:{"driver":"qed","file.filename":"a.qed","detect-zeroes":"on"}
json:{"driver":"qed","file.filename":"a.qed","detect-zeroes":"unmap"}
json:{"driver":"qed","file.filename":"a.qed","detect-zeroes":"unmap","discard":"unmap"}
json:{"driver":"qed","file.filename":"a.qed","detect-zeroes":"x"}
json:{"driver":"qed","file.filename":"a.qed","force-share":true}
json:{"driver":"qed","file.filename":"a.qed","force-share":"x"}
json:{"driver":"qed","file.filename":"a.qed","node-name":"n"}
json:{"driver":"qed","file.filename":"a.qed","node-name":"n","file.node-name":"n"}
json:{"driver":"qed","file.filename":"a.qed","node-name":"1n"}
json:{"driver":"qed","file.filename":"a.qed","node-name":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
json:{"driver":"qed","file.filename":"a.qed","node-name":"#n"}
json:{"driver":"qed","file.filename":"a.qed","node-name":""}
json:{"driver":"qed","file.filename":"a.qed","l2-cache-size":"1M"}
json:{"driver":"qed","file.filename":"a.qed","copy-on-read":true}
json:{"driver":"qed","file.filename":"a.qed","copy-on-read":"on"}
json:{"driver":"qed","file.filename":"a.qed","file.locking":"off"}
json:{"driver":"qed","file.filename":"a.qed","file.locking":"auto"}
json:{"driver":"qed","file.filename":"a.qed","file.locking":"x"}
json:{"driver":"qed","file.filename":"a.qed","file.aio":"threads"}
json:{"driver":"qed","file.filename":"a.qed","file.aio":"native"}
json:{"driver":"qed","file.filename":"a.qed","file.aio":"io_uring"}
json:{"driver":"qed","file.filename":"a.qed","file.aio":"x"}
json:{"driver":"qed","file.filename":"a.qed","file.aio":"native","file.cache.direct":true}
json:{"driver":"qed","file.filename":"a.qed","file.aio":"native","cache.direct":true}
json:{"driver":"qed","file.filename":"a.qed","file.cache.direct":true}
json:{"driver":"qed","file.filename":"a.qed","file.drop-cache":"off"}
json:{"driver":"qed","file.filename":"a.qed","file.drop-cache":"x"}
json:{"driver":"qed","file.filename":"a.qed","file.x-check-cache-dropped":"on"}
json:{"driver":"qed","file.filename":"a.qed","file.aio-max-batch":"4"}
json:{"driver":"qed","file.filename":"a.qed","file.aio-max-batch":"x"}
json:{"driver":"qed","file.filename":"a.qed","file.pr-manager":"x"}
json:{"driver":"qed","file.filename":"a.qed","file.read-only":true}
json:{"driver":"qed","file.filename":"a.qed","file.discard":"unmap"}
json:{"driver":"qed","file.filename":"a.qed","file.node-name":"foo"}
json:{"driver":"qed","file":{"driver":"host_device","filename":"a.qed"}}
json:{"driver":"qed","file":{"driver":"host_cdrom","filename":"a.qed"}}
json:{"driver":"qed","file":{"driver":"host_device","filename":"nope"}}
json:{"driver":"host_device","filename":"a.qed"}
json:{"driver":"host_device","filename":"dir"}
json:{"driver":"file","filename":"dir"}
json:{"driver":"file","filename":"nope"}
json:{"driver":"qed","file.filename":"ov.qed","backing":null}
json:{"driver":"qed","file.filename":"ov.qed","backing":"x"}
json:{"driver":"qed","file.filename":"ov.qed","backing":{"driver":"null-co"}}
json:{"driver":"qed","file.filename":"ov.qed","backing.driver":"raw"}
json:{"driver":"qed","file.filename":"ov.qed","backing.driver":"qed"}
json:{"driver":"qed","file.filename":"ov.qed","backing":{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}}
json:{"driver":"qed","file.filename":"ov.qed","backing.file.filename":"base.raw"}
json:{"driver":"qed","file.filename":"ov.qed","backing.driver":"raw","backing.file.filename":"base.raw"}
json:{"driver":"qed","file.filename":"a.qed","backing.driver":"raw","backing.file.filename":"base.raw"}
json:{"driver":"qed","file.filename":"ov.qed","backing":"a.qed"}
json:{"driver":"qed","file.filename":"ov.qed","backing.node":"x"}
json:{"driver":"raw","file.filename":"ov.qed","backing":"x"}
json:{"driver":"raw","file.filename":"ov.qed","backing":null}
json:{"driver":"raw","file.filename":"ov.qed","backing.driver":"raw"}
json:
json:{
json:}
json:{}
json: {"driver":"raw","file.filename":"a.qed"}
json:{"driver":"raw","file.filename":"a.qed"} x
json:{"driver":"raw","file.filename":"a.qed"} {}
json:{"driver":"raw","file.filename":"a.qed",}
json:{"driver":"raw" "file.filename":"a.qed"}
json:{"driver" "raw"}
json:{"driver":}
json:{driver:"raw"}
json:{5:"raw"}
json:{"driver":"raw
json:{"driver":"raw"
json:["driver"]
json:"x"
json:5
json:null
json:true
json:nope
json:{"driver":nope}
json:{"driver":"r\u0061w","file.filename":"a.qed"}
json:{"driver":"r\x61w","file.filename":"a.qed"}
json:{"driver":"raw","file.filename":"a\.qed"}
json:{"driver":"raw","file.filename":"a.qed\u0000"}
json:{'driver':'raw','file.filename':'a.qed'}
json:{'driver':"raw",'file.filename':'a.qed'}
json:{'driver':'r"aw'}
json:{'driver':'r\'aw'}
json:{"driver":"r'aw"}
json:{"driver":"r\"aw"}
json:{"driver":"r\/aw"}
json:{"driver":"r\'aw"}
json:{"driver":"r\naw"}
json:{"driver":"rüw"}
json:{"driver":"r\ud83d\ude00w"}
json:{"driver":"r\ud83dw"}
json:{"driver":"raw","driver":"qed","file.filename":"a.qed"}
json:{"driver":"raw","file":{"filename":"a.qed","filename":"b"}}
json:{"driver":"raw","file":{"filename":"a.qed"},"file.filename":"base.raw"}
json:{"file.filename":"base.raw","driver":"raw","file":{"filename":"a.qed"}}
json:{"driver":"raw","file.filename":"a.qed","offset":1e3}
json:{"driver":"raw","file.filename":"a.qed","offset":01}
json:{"driver":"raw","file.filename":"a.qed","offset":0x200}
json:{"driver":"raw","file.filename":"a.qed","offset":+5}
json:{"driver":"raw","file.filename":"a.qed","offset":.5}
json:{"driver":"raw","file.filename":"a.qed","offset":5.}
json:{"driver":"raw","file.filename":"a.qed","offset":512.0}
json:{"driver":"raw","file.filename":"a.qed","offset":18446744073709551616}
json:{"driver":"raw","file.filename":"a.qed","offset":"512b"}
json:{"driver":"raw","file.filename":"a.qed","offset":""}
json:{"driver":"raw","file.filename":"a.qed","offset":"0.5k"}
json:{"driver":"raw","file.filename":"a.qed","offset":null}
json:{"driver":"raw","file.filename":"a.qed","offset":{}}
json:{"driver":"raw","file.filename":"a.qed","offset":[]}
json:{"driver":"raw","file.filename":"a.qed","a":{},"b":[]}
json:{"driver":"raw","file.filename":"a.qed","":1}
json:{"driver":"raw","file.filename":"a.qed"}}
json:{"driver":"raw","file.filename":"a.qed"]
json:{"driver":"raw","file":["filename"]}
json:[[[[[[[[[[
json:{"a":[1,2,]}
json:{"a":[,]}
json:{"a":[1 2]}
json:{"a":@}
json:{"a":%s}
json:{"a":-}
json:{"a":-0}
json:{"a":tru}
json:{"a":TRUE}
json:{"driver":"host_device","file.filename":"a.qed"}
json:{"driver":"blkdebug","image":{"driver":"file","filename":"a.qed"},"align":512}
json:{"driver":"blkdebug","image":{"driver":"file","filename":"a.qed"},"inject-error":[{"event":"read_aio","errno":28,"once":true}]}
json:{"driver":"blkdebug","image":{"driver":"file","filename":"a.qed"},"inject-error":{"event":"read_aio","errno":28,"once":true}}
json:{"driver":"blkdebug","image":{"driver":"file","filename":"a.qed"},"inject-error":[{"event":"read_aio","errno":"28","once":"on"}],"set-state":[{"event":"l2_load","state":1,"new_state":2}]}
json:{"driver":"blkdebug","image":{"driver":"qed","file":{"driver":"file","filename":"a.qed"}}}
json:{"driver":"blkdebug","image":"x"}
json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"a.qed"},"config":"rules.conf"}}
json:{"driver":"raw","file":{"driver":"blkdebug","config":"all.conf","x-image":"a.qed"}}
json:{"driver":"raw","file":{"driver":"blkdebug","x-image":"json:{\"driver\":\"file\",\"filename\":\"a.qed\"}"}}
json:{"driver":"raw","file":{"driver":"blkdebug","x-image":"foo:x:1"}}
json:{"driver":"raw","file":{"driver":"blkdebug","image.driver":"raw","image.file.filename":"a.qed"}}
json:{"driver":"qed","file":{"driver":"host_device","filename":"file:a.qed"}}
json:{"driver":"qed","file":"json:{}"}
json:{"driver":"qed","file":{"driver":"qed","file":{"driver":"qed","file":{"driver":"file","filename":"a.qed"}}}}
json:{"driver":"qed","file":{"driver":"qed","file":{"driver":"file","filename":"nope"}}}
json:{"driver":"qed","file":{"driver":"raw","file":{"driver":"file","filename":"a.qed"},"offset":512}}
json:{"driver":"qed","file":{"driver":"raw","file":{"driver":"file","filename":"a.qed"},"size":65536}}
json:{"driver":"qed","file":{"driver":"file","filename":"a.qed","offset":3}}
json:{"driver":"qed","file.filename":"a.qed","read-only":true,"file.read-only":false}
"""
)

OPTIONS = rows(
    """
a.qed
file=a.qed
file.filename=a.qed
driver=qed,file.filename=a.qed
driver=qed,file.driver=file,file.filename=a.qed
driver=file,filename=a.qed
filename=a.qed

,
driver=qed,,file.filename=a.qed
file.filename=a,,b
file.filename=a.qed,
file.filename=a.qed,,
=x
file.filename=a.qed,=x
file.filename=a.qed,read-only=on
file.filename=a.qed,read-only=yes
file.filename=a.qed,read-only=true
file.filename=a.qed,read-only=1
file.filename=a.qed,read-only=
file.filename=nope,file.filename=a.qed
driver=raw,file.filename=a.qed,offset=512
driver=raw,file.filename=a.qed,offset=1k,size=1M
driver=raw,file.filename=a.qed,offset=0x200
driver=raw,file.filename=a.qed,size=1.5k
driver=raw,file.filename=a.qed,size=1b
driver=raw,file.filename=a.qed,size=10000000000000000000000
driver=raw,file.filename=a.qed,size=18446744073709551615
driver=raw,file.filename=a.qed,offset=18446744073709551104
driver=raw,file.filename=a.qed,size=9223372036854775808
id=x,file.filename=a.qed
id=1x,file.filename=a.qed
driver=qed,file.filename=a.qed,file.foo=1
driver=qed,file.filename=a.qed,file=x
driver=qed,file.filename=a.qed,file.file=x
driver=qed,file.filename=
driver=qed,file.driver=file
driver=qed
driver=
driver
help
driver=help
?
driver=nope
driver=qed,file.driver=nope
driver=raw,file.driver=qed,file.file.filename=a.qed
driver=qed,file.driver=raw,file.file.filename=a.qed
driver=qed,file.driver=qed,file.file.filename=a.qed
file.driver=qed,file.file.filename=a.qed
file.file.filename=a.qed
driver=raw,file.file.filename=a.qed
"""
)

BLKDEBUG = rows(
    """
driver=blkdebug,image.filename=a.qed
driver=blkdebug,x-image=a.qed
driver=blkdebug,x-image=a.qed,config=rules.conf
driver=blkdebug
driver=blkdebug,image=a.qed
driver=blkdebug,x-image=nope
driver=blkdebug,x-image=a.qed,config=nope
driver=blkdebug,x-image=a.qed,config=event.conf
driver=blkdebug,x-image=a.qed,config=group.conf
driver=blkdebug,x-image=a.qed,config=junk.conf
driver=blkdebug,x-image=a.qed,config=all.conf
driver=blkdebug,x-image=a.qed,config=
driver=qed,file.driver=blkdebug,file.image.filename=a.qed
driver=qed,file.driver=blkdebug,file.image.driver=file,file.image.filename=a.qed,file.config=rules.conf
driver=qed,file.driver=blkdebug,file.x-image=a.qed
+align=512
+align=1000
+align=x
+align=0
+align=-1
+align=256
+align=4k
+align=1G
+align=2147483648
+align=1073741824
+align=4096,max-transfer=4096
+align=4096,max-transfer=1000
+align=4096,max-transfer=5000
+max-transfer=1000
+max-transfer=1
+opt-write-zero=1000
+align=512,opt-write-zero=1000
+align=512,max-write-zero=1000
+align=512,opt-write-zero=1024,max-write-zero=1536
+align=512,opt-discard=1000
+align=512,max-discard=1000
+align=512,max-discard=99999999999
+max-transfer=99999999999
+inject-error.0.event=read_aio
+inject-error.0.event=nope
+inject-error.0.errno=5
+inject-error.0.event=read_aio,inject-error.0.errno=x
+inject-error.0.event=read_aio,inject-error.0.foo=x
+inject-error.0.event=read_aio,inject-error.0.once=x
+inject-error.0.event=read_aio,inject-error.0.immediately=x
+inject-error.0.event=read_aio,inject-error.0.sector=x
+inject-error.0.event=read_aio,inject-error.0.state=x
+inject-error.0.event=read_aio,inject-error.0.iotype=x
+inject-error.0.event=read_aio,inject-error.0.iotype=read
+inject-error.1.event=read_aio
+inject-error.event=read_aio
+inject-error.x.event=read_aio
+inject-error=x
+set-state.0.event=read_aio,set-state.0.new_state=2
+set-state.0.event=read_aio,set-state.0.new_state=x
+set-state.0.event=read_aio
+set-state.0.event=read_aio,set-state.0.errno=5
+inject-error.0.event=l2_load,set-state.0.event=read_aio,set-state.0.new_state=5
+foo=5
+take-child-perms.0=write
+take-child-perms.0=x
+unshare-child-perms.0=write
+unshare-child-perms.0=consistent-read
+inject-error.0.event=pwritev
+inject-error.0.event=none
+inject-error.0.event=l2_alloc_write
+inject-error.0.event=cluster_alloc
+inject-error.0.event=header_update
+inject-error.0.event=l1_grow_alloc_table
+inject-error.0.event=l1_grow.alloc_table
+inject-error.0.event=vmstate_load
driver=qed,file.driver=blkdebug,file.x-image=blkdebug::a.qed
driver=blkdebug,x-image=a.qed,config=tight.conf
driver=blkdebug,x-image=a.qed,config=key.conf
driver=blkdebug,x-image=a.qed,config=number.conf
driver=blkdebug,x-image=a.qed,config=noevent.conf
driver=blkdebug,x-image=a.qed,config=empty.conf
driver=blkdebug,x-image=a.qed,config=id.conf
driver=blkdebug,x-image=a.qed,config=twice.conf
"""
)

BACKING = rows(
    """
map --image-opts driver=qed,file.filename=ov.qed,backing.driver=raw,backing.file.filename=base.raw
map --image-opts driver=qed,file.filename=ov.qed,backing.driver=qed
map --image-opts driver=qed,file.filename=ov.qed,backing.driver=raw
map --image-opts driver=qed,file.filename=ov.qed,backing.driver=nope
map --image-opts driver=qed,file.filename=ov.qed,backing.file.filename=base.raw
map --image-opts driver=qed,file.filename=ov.qed,backing.file.filename=nope
map --image-opts driver=qed,file.filename=ov.qed,backing.file.driver=nope
map --image-opts driver=qed,file.filename=ov.qed,backing=x
map --image-opts driver=qed,file.filename=ov.qed,backing.node=x
map --image-opts driver=qed,file.filename=ov.qed,backing.foo=x
map --image-opts driver=qed,file.filename=ov.qed,backing.file=x
map --image-opts driver=qed,file.filename=ov.qed,backing.file.foo=x
map --image-opts driver=qed,file.filename=a.qed,backing.driver=raw
map --image-opts driver=qed,file.filename=a.qed,backing.foo=raw
map --image-opts driver=qed,file.filename=a.qed,backing.file.filename=base.raw
map --image-opts driver=qed,file.filename=a.qed,backing.driver=raw,backing.file.filename=base.raw
map --image-opts driver=qed,file.filename=a.qed,backing=x
map --image-opts driver=raw,file.filename=a.qed,backing=x
map --image-opts driver=raw,file.filename=a.qed,backing.driver=x
map --image-opts driver=qed,file.filename=ovr.qed,backing.driver=qed
map --image-opts driver=qed,file.filename=ovr.qed,backing.detect-zeroes=on
map --image-opts driver=qed,file.filename=sub/up.qed,backing.driver=raw
map --image-opts driver=qed,file.filename=sub/up.qed
map --image-opts driver=qed,file.driver=blkdebug,file.x-image=sub/up.qed
map --output=json --image-opts driver=qed,file.driver=blkdebug,file.x-image=ov.qed
map --output=json --image-opts driver=qed,file.driver=blkdebug,file.x-image=ov.qed,file.align=512
map --output=json --image-opts driver=qed,file.filename=ov.qed,backing.driver=raw,backing.file.filename=base.raw
map --output=json 'json:{"driver":"qed","file.filename":"ov.qed","backing":null}'
check --image-opts driver=qed,file.filename=a.qed
check --image-opts driver=qed,file.driver=qed,file.file.filename=a.qed
check --image-opts driver=raw,file.driver=qed,file.file.filename=a.qed
check blkdebug::a.qed
check -r all --image-opts driver=qed,file.filename=a.qed,read-only=on
check -r all --image-opts driver=qed,file.filename=a.qed,file.read-only=on
check -r all --image-opts driver=qed,file.filename=a.qed,force-share=on
check -r all --image-opts driver=qed,file.filename=a.qed,file.force-share=on
check -r all --image-opts driver=qed,file.filename=a.qed,auto-read-only=on
compare --image-opts driver=raw,file.filename=base.raw driver=raw,file.filename=base.raw
compare --image-opts driver=raw,file.filename=base.raw,offset=0 driver=raw,file.filename=base.raw,size=1M
compare --image-opts driver=raw,file.filename=base.raw,offset=512 driver=raw,file.filename=base.raw
map sub/gone3.qed
map isdir.qed
map file:ov.qed
map -f raw ov.qed
"""  # noqa: E501
)


@pytest.mark.parametrize("words", NAMES)
def test_name_leads_where_qemus_does(words: str, twins: Twins) -> None:
    twins.run(f"info {words}", files=False)


@pytest.mark.parametrize("name", JSON)
def test_json_name_leads_where_qemus_does(name: str, twins: Twins) -> None:
    twins.run(["info", name], files=False)


@pytest.mark.parametrize("options", OPTIONS)
def test_image_opts_lead_where_qemus_do(options: str, twins: Twins) -> None:
    twins.run(["info", "--image-opts", options], files=False)


@pytest.mark.parametrize(
    "options",
    [
        "file.filename=a.qed,read-only",
        "file.filename=a.qed,noread-only",
        "driver=qed,a.qed",
        "driver=qed,file.filename=ov.qed,backing=",
    ],
)
def test_old_forms_are_taken_without_a_warning(options: str, twins: Twins) -> None:
    ours = twins.run(["info", "--image-opts", options], files=False, stderr=False)
    assert bool(ours.err) == bool(ours.code)


@pytest.mark.parametrize("options", BLKDEBUG)
def test_blkdebug_options_are_taken_or_refused_as_qemus(options: str, twins: Twins) -> None:
    if options.startswith("+"):
        its = ",".join(f"file.{part}" for part in options[1:].split(","))
        options = f"driver=qed,file.driver=blkdebug,file.x-image=a.qed,{its}"
    twins.run(["info", "--image-opts", options], files=False)


@pytest.mark.parametrize("command", BACKING)
def test_backing_options_lead_where_qemus_do(command: str, twins: Twins) -> None:
    twins.run(command, files=False)


@pytest.mark.parametrize("fmt", ["qed", "raw", "file", "blkdebug", "host_device"])
def test_format_of_the_command_line_counts_before_that_of_a_json_name(
    fmt: str, twins: Twins
) -> None:
    twins.run(["info", "-f", fmt, "json:{'driver':'qed','file':{'filename':'a.qed'}}"], files=False)


@pytest.mark.parametrize("driver", ["luks", "dmg", "http", "throttle", "null-co", "copy-on-read"])
def test_driver_that_we_lack_is_unknown(driver: str, twins: Twins) -> None:
    name = f"json:{{'driver':'{driver}','file.filename':'a.qed'}}"
    said = twins.ours(["info", name])
    assert (said.code, said.out) == (1, "")
    assert said.err == f"qemu-img: Could not open \"{name}\": Unknown driver '{driver}'\n".replace(
        '"', "'"
    )


@pytest.mark.parametrize("url", ["http://localhost/x", "ssh://x/y", "rbd:x/y", "fat:dir"])
def test_protocol_that_we_lack_is_unknown(url: str, twins: Twins) -> None:
    said = twins.ours(["info", url])
    protocol = url.partition(":")[0]
    assert said.err == f"qemu-img: Could not open '{url}': Unknown protocol '{protocol}'\n"


@pytest.mark.parametrize("fmt", ["qcow2", "vmdk", "vdi", "vpc", "vhdx", "qcow", "parallels"])
def test_image_of_another_format_is_not_taken_for_a_raw_disk(fmt: str, tmp_path: Path) -> None:
    twins = Twins(tmp_path)
    twins.theirs(f"create -f {fmt} x 8M")
    (twins.mine / "x").write_bytes((twins.real / "x").read_bytes())
    said = twins.ours("info x")
    facts = twins.theirs("info x").out.split("disk size")[0]
    assert (said.code, said.out.split("disk size")[0]) == (0, facts)
    assert twins.ours("info -f raw x").code == 0
