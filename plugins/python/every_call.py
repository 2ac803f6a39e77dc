#!/usr/bin/env python3
"""A plugin that makes every call and gives every kind of answer, for test_kits.py; ../c/every_call.c does the same."""
import os
import sys

from ckrun_plugin import Denied, Limit, Plugin, Result, Unknown, WrongState, connection, device, handle, memory


class EveryCall(Plugin):
    version = "every call"

    def init(self, event):
        real, other = os.memfd_create("ring"), os.memfd_create("link")
        os.write(real, b"ring")
        os.write(other, b"link")
        return Result(
            bindings=[
                device("/dev/emu0", "/dev/pts/9"),
                memory("/dev/shm/ring0", fd=real),
                connection("tcp:emu:4000", "tcp:10.0.0.7:5011"),
                connection("unix:@emu", fd=other),
                handle("session", 1, 48211),
            ],
            env={"EMU_SLOTS": "1", "EMU_\"NAME\"": "Bär\n"},
            mounts=[{"source": "/opt/emu/lib", "destination": "/opt/emu/lib", "options": ["ro", "nosuid"]}],
            ioctls=[{"device": "/dev/emu0", "command": "0xc0084501",
                     "handles": [{"space": "session", "offset": 0, "size": 4, "direction": "both"}]},
                    {"device": "/dev/emu0", "command": "0x4502",
                     "handles": [{"space": "session", "at": "argument", "size": 4, "direction": "in"},
                                 {"space": "buffer", "at": "result", "direction": "out"}]}],
        )

    def precheckpoint(self, event):
        ck = self.ckrun
        assert ck.translate("device", virtual="/dev/emu0").real == "/dev/pts/9"
        assert ck.translate("device", real="/dev/pts/9").virtual == "/dev/emu0"
        assert ck.translate("handle", virtual=1, space="session").real == 48211
        assert ck.translate("pid", real=4242).virtual == 7
        assert ck.translate_fd(7, 3) == ("/dev/emu0", "/dev/pts/9")
        ck.bind("session", 2, 48212)
        ck.unbind("session", 2)
        ck.put("text", "Bär 🐻\0")
        ck.put("number", -9007199254740991)
        ck.put("value", {"list": [1.5, None, True]})
        assert ck.get("value") == {"list": [1.5, None, True]}
        ck.put("value", None)
        try:
            ck.get("value")
        except Unknown:
            pass
        (task,) = ck.tasks()
        assert task == (7, 8, "testbench")
        data = ck.read(7, 0x7F00C0DE1000, 600000)
        assert data == bytes(i % 251 for i in range(600000))
        ck.write(7, 0x7F00C0DE1000, data[:524290])
        assert ck.registers(8)["rip"] == 0x401000
        ck.registers(8, rip=0x402000)
        ck.signal(7, 10)
        try:
            ck.put("large", "x" * 1048576)
        except Limit:
            ck.log("warn", "large\udcff")
        return Result(requirements={"design": "sha256:6be1", "gates": 1200000, "parts": ["a", {"b": 2}]})

    def presuspend(self, event):
        try:
            self.ckrun.barrier("drained")
        except WrongState:
            self.ckrun.log("info", f"cancelled {self.ckrun.cancelled()}")

    def resume(self, event):
        try:
            self.ckrun.signal(7, 9)
        except Denied as e:
            self.ckrun.log("error", str(e))
            raise

    def running(self, event):
        raise KeyError("a mistake")


sys.exit(EveryCall().serve())
