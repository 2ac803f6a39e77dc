"""Plays systemd's manager for the tests: says each call it gets as a line of JSON, and does with cgroups what systemd
does. Arguments: a word that is true if the unit exists until it is reset, then the directories of the slice."""

import json
import os
import sys

import dbus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

MANAGER = "org.freedesktop.systemd1.Manager"
JOB = "/org/freedesktop/systemd1/job/%d"
exists = sys.argv[1] == "exists"
slices = sys.argv[2:]


class Refused(dbus.DBusException):
    def __init__(self, name):
        super().__init__("no, thanks")
        self._dbus_error_name = "org.freedesktop.systemd1." + name


def say(method, unit, properties=()):
    json.dump([method, str(unit), {str(k): str(v) for k, v in properties}], sys.stdout)
    print(flush=True)


class Manager(dbus.service.Object):
    @dbus.service.signal(MANAGER, signature="uoss")
    def JobRemoved(self, number, job, unit, result):
        pass

    def job(self, unit, result):
        # Another unit's job ends, too, and before the answer.
        self.JobRemoved(6, JOB % 6, "other.scope", "failed")
        GLib.idle_add(lambda: self.JobRemoved(7, JOB % 7, unit, result))
        return JOB % 7

    @dbus.service.method(MANAGER, in_signature="ssa(sv)a(sa(sv))", out_signature="o")
    def StartTransientUnit(self, unit, mode, properties, others):
        say("StartTransientUnit", unit, properties)
        if exists:
            raise Refused("UnitExists")
        for slice in slices:
            scope = os.path.join(slice, unit)
            os.makedirs(scope)
            with open(os.path.join(scope, "cgroup.procs"), "w") as procs:
                procs.write(str(dict(properties)["PIDs"][0]))
        return self.job(unit, "failed" if "broken" in unit else "done")

    @dbus.service.method(MANAGER, in_signature="ss", out_signature="o")
    def StopUnit(self, unit, mode):
        say("StopUnit", unit)
        if "broken" in unit:
            raise Refused("NoSuchUnit")
        return self.job(unit, "done")

    @dbus.service.method(MANAGER, in_signature="s")
    def ResetFailedUnit(self, unit):
        global exists
        say("ResetFailedUnit", unit)
        exists = False

    @dbus.service.method(MANAGER, in_signature="sba(sv)")
    def SetUnitProperties(self, unit, runtime, properties):
        say("SetUnitProperties", unit, properties)

    @dbus.service.method(dbus.PROPERTIES_IFACE, in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        say("Get", name)
        return "/user.slice/user-5.slice/user@5.service"


dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.SessionBus()
name = dbus.service.BusName("org.freedesktop.systemd1", bus)
manager = Manager(bus, "/org/freedesktop/systemd1")
say("ready", "")
GLib.MainLoop().run()
