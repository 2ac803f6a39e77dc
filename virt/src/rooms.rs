//! All kinds of state that processes and threads have, together.
//!
//! A kind is one line here. The stories ask, capture, write and read all of them at once; only the order in which they
//! are put back is spelt out, in [`crate::restore`].

use crate::cpu::xstate::Permission;
use crate::creds::{Creds, Dumpable};
use crate::dispatch::UserDispatch;
use crate::exit::AtExit;
use crate::image::{Image, Writer};
use crate::interval_timers::IntervalTimers;
use crate::limits::Limits;
use crate::mempolicy::MemPolicy;
use crate::oom::{CoredumpFilter, OomScoreAdj};
use crate::outside::Outside;
use crate::program::{Answers, Program};
use crate::resource::{Resource, Stopped};
use crate::sched::Sched;
use crate::signals::{Actions, AltStack, Pending, SharedPending};
use crate::switches::{ProcessSwitches, ThreadSwitches};
use crate::{Error, Failure};
use nix::unistd::Pid;
use std::collections::BTreeMap;

/// Declares a collection of [`Resource`]s: `field: Kind = "file.json"`. Each kind is a file of the image, in which the
/// state of each process or thread stands under its id.
macro_rules! rooms {
    ($(#[$doc:meta])* $name:ident, $asked:ident { $($(#[$about:meta])* $field:ident: $kind:ty = $file:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$about])* pub $field: BTreeMap<i32, $kind>,)*
        }

        /// The questions of all kinds, in one program.
        #[derive(Debug)]
        pub struct $asked {
            $($field: <$kind as Resource>::Asked,)*
        }

        impl $name {
            /// Adds every kind's questions to a program.
            pub fn ask(program: &mut Program) -> $asked {
                $asked { $($field: <$kind>::ask(program),)* }
            }

            /// Reads every kind's answers.
            ///
            /// # Errors
            /// Those of [`Resource::capture`].
            pub fn capture(&mut self, task: &Stopped, asked: &$asked, answers: &Answers) -> Result<(), Failure> {
                $(self.$field.insert(task.tid, <$kind>::capture(task, &asked.$field, answers)?);)*
                Ok(())
            }

            /// Writes every kind's file.
            ///
            /// # Errors
            /// Those of the image.
            pub fn write(&self, image: &mut Writer) -> Result<(), Error> {
                $(image.json($file, &self.$field)?;)*
                Ok(())
            }

            /// Reads every kind's file.
            ///
            /// # Errors
            /// Those of the image.
            pub fn read(image: &Image) -> Result<Self, Error> {
                Ok($name { $($field: image.json($file)?,)* })
            }
        }
    };
}

/// The same for kinds of state that ckrun reads and sets from outside: [`Outside`].
macro_rules! outside_rooms {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $field:ident: $kind:ty = $file:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$about])* pub $field: BTreeMap<i32, $kind>,)*
        }

        impl $name {
            /// Reads every kind of a task that is stopped and in none of ckrun's hands.
            ///
            /// # Errors
            /// Those of [`Outside::capture`].
            pub fn capture(&mut self, task: &Stopped) -> Result<(), Failure> {
                $(self.$field.insert(task.tid, <$kind>::capture(task)?);)*
                Ok(())
            }

            /// Gives every kind to the task whose id in ckrun's pid namespace is `host`, but for those that it was born with,
            /// which are the only ones in `born`.
            ///
            /// # Errors
            /// Those of [`Outside::restore`], but for kinds that a job can do without.
            pub fn restore(&self, tid: i32, host: Pid, born: &Self) -> Result<(), Failure> {
                $(
                    let had = born.$field.values().next();
                    if let Some(Err(e)) = self.$field.get(&tid).map(|kind| kind.restore_over(had, host)) {
                        if <$kind>::NEEDED {
                            return Err(e);
                        }
                        log::warn!("task {tid} does without: {e}");
                    }
                )*
                Ok(())
            }

            /// Writes every kind's file.
            ///
            /// # Errors
            /// Those of the image.
            pub fn write(&self, image: &mut Writer) -> Result<(), Error> {
                $(image.json($file, &self.$field)?;)*
                Ok(())
            }

            /// Reads every kind's file.
            ///
            /// # Errors
            /// Those of the image.
            pub fn read(image: &Image) -> Result<Self, Error> {
                Ok($name { $($field: image.json($file)?,)* })
            }
        }
    };
}

rooms! {
    /// What belongs to a process; its leader is asked.
    ProcessRooms, AskedProcess {
        /// What it does about signals.
        actions: Actions = "signal-actions.json",
        /// Signals that wait for any of its threads.
        pending: SharedPending = "pending-process.json",
        /// Its interval timers.
        timers: IntervalTimers = "interval-timers.json",
        /// Its limits.
        limits: Limits = "limits.json",
        /// What it has switched on and off.
        switches: ProcessSwitches = "process-switches.json",
        /// Whether others may look into it.
        dumpable: Dumpable = "dumpable.json",
        /// CPU state that it had to ask for.
        permission: Permission = "cpu-permissions.json",
    }
}

rooms! {
    /// What belongs to a thread.
    ThreadRooms, AskedThread {
        /// The stack for signal handlers.
        alt_stack: AltStack = "alternate-stacks.json",
        /// Signals that wait for it alone.
        pending: Pending = "pending-threads.json",
        /// Who it is and what it may.
        creds: Creds = "credentials.json",
        /// What it has switched on and off.
        switches: ThreadSwitches = "thread-switches.json",
        /// Where it takes memory from.
        memory_policy: MemPolicy = "memory-policies.json",
        /// What happens at its end.
        at_exit: AtExit = "at-exit.json",
    }
}

outside_rooms! {
    /// What belongs to a process, seen from outside.
    OutsideProcess {
        /// How soon it is killed when memory is short.
        oom_score: OomScoreAdj = "oom-scores.json",
        /// What its core dump would hold.
        coredump: CoredumpFilter = "coredump-filters.json",
    }
}

outside_rooms! {
    /// What belongs to a thread, seen from outside.
    OutsideThread {
        /// When and where it runs.
        sched: Sched = "scheduling.json",
        /// Which of its calls become signals.
        dispatch: UserDispatch = "syscall-dispatch.json",
    }
}
