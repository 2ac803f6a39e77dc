#!/usr/bin/env python3
"""A plugin for an imaginary emulator: the job finds it at /dev/emu0, which is the option `device` on every host. It vetoes
checkpoints while the file of the option `busy` exists. ../c/example.c does the same: each restarts what the other saved."""
import os
import sys

from ckrun_plugin import Lost, Mismatch, Plugin, Result, Unavailable, Veto, device


class Example(Plugin):
    version = "example 1"
    deadlines = {"precheckpoint": 600}
    cycle = 0

    def count(self, event=None):
        """Counts the events of the job's whole life, restarts included: the key-value area is kept in the image."""
        self.ckrun.put("events", self.ckrun.get("events", 0) + 1)

    committed = resume = running = exit = count

    def hello(self, event):
        self.design = self.ckrun.options.get("design", "sha256:6be1")

    def init(self, event):
        if "device" not in self.ckrun.options:
            raise Unavailable("the option device is missing")
        self.count()
        return Result(bindings=[device("/dev/emu0", self.ckrun.options["device"])])

    def presuspend(self, event):
        busy = self.ckrun.options.get("busy")
        if busy and os.path.exists(busy):
            raise Veto(f"a transfer is under way: {busy} exists")
        self.count()

    def precheckpoint(self, event):
        self.cycle += 1000
        with event.open("state", "x") as state:
            state.write(f"cycle {self.cycle}\n")
        self.count()
        return Result(requirements={"design": self.design})

    def check(self, event):
        if (needed := event.requirements.get("design", "?")) != self.design:
            raise Mismatch(f"the image needs design {needed}, here is {self.design}")

    def restart(self, event):
        self.check(event)
        try:
            with event.open("state") as state:
                self.cycle = int(state.read().removeprefix("cycle "))
        except (OSError, ValueError):
            raise Lost(f"{event.folder}/state: it holds no state") from None
        self.ckrun.log("info", f"the emulator goes on at cycle {self.cycle}")
        return self.init(event)


if __name__ == "__main__":
    sys.exit(Example().serve())
