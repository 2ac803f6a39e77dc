//! Checkpoint and restart of what threads have in the CPU: registers, restartable sequences, calls that wait.

mod registers {
    use ckrun_integration::modes_survive;

    modes_survive! { "registers": general floating vectors narrow tiles bases ; else }
}

mod rseq {
    use ckrun_integration::modes_survive;

    modes_survive! { "rseq": counters ; else }
}

mod sleeper {
    use ckrun_integration::job::Job;
    use ckrun_integration::modes_survive;

    modes_survive! { "sleeper": timeouts epoll semaphore for_ever ; else "socket" }

    #[test]
    fn socket() {
        Job::up("sleeper", "socket").survives_or_is_refused(&["unix stream socket"]);
    }
}

/// Checkpoints that leave the job running come and go unnoticed, however many.
mod unnoticed {
    use ckrun_integration::job::{Job, path};

    fn many(program: &str, mode: &str) {
        let job = Job::up(program, mode);
        for n in 0..10 {
            let image = job.image(&format!("image-{n}"));
            let words = ["checkpoint", "--leave-running", "--image-path", path(&image), "ID"];
            job.container.ckrun(&words).ok();
        }
        job.is_well();
    }

    #[test]
    fn by_vectors() {
        many("registers", "vectors");
    }

    #[test]
    fn by_restartable_sequences() {
        many("rseq", "counters");
    }

    #[test]
    fn by_timeouts() {
        many("sleeper", "timeouts");
    }

    #[test]
    fn by_epoll() {
        many("sleeper", "epoll");
    }

    #[test]
    fn by_those_who_wait_for_ever() {
        many("sleeper", "for-ever");
    }
}
