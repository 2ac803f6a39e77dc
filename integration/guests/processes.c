/* Processes and threads: their ids, families, sessions, groups and states. */
#include "guest.h"
#include <pthread.h>

/* Every process checks who it is and who its parent is, for ever. */
static pid_t group; /* where it is not to change */
static _Noreturn void live(int heart, pid_t parent) {
    pid_t pid = getpid(), session = getsid(0);
    for (;;) {
        EQUAL(getpid(), pid);
        EQUAL(syscall(SYS_gettid), pid);
        EQUAL(getppid(), parent);
        EQUAL(getsid(0), session);
        if (group) EQUAL(getpgrp(), group);
        beat(heart);
    }
}
static pid_t child(int heart) {
    pid_t parent = getpid(), pid = MUST(fork());
    if (!pid) live(heart, parent);
    return pid;
}

static int hearts;
static void hearts_beat(void) { all_alive(hearts); }

static void set_wide(void) {
    share();
    for (hearts = 0; hearts < 60; hearts++) child(hearts);
}

static void set_deep(void) {
    share();
    hearts = 24;
    for (int i = 0; i < hearts; i++) {
        pid_t parent = getpid();
        if (MUST(fork())) {
            if (i) live(i - 1, getppid());
            return;
        }
        EQUAL(getppid(), parent);
    }
    live(hearts - 1, getppid());
}

/* 1 + 3 + 9 + 27 processes. */
static void grow(int heart, int depth) {
    for (int i = 1; depth && i <= 3; i++) {
        pid_t parent = getpid();
        if (!MUST(fork())) {
            grow(heart * 3 + i, depth - 1);
            live(heart * 3 + i - 1, parent);
        }
    }
}
static void set_tree(void) {
    share();
    hearts = 39;
    grow(0, 3);
}

static __thread uint64_t own_number;
static void *thread_lives(void *heart) {
    int me = (int)(intptr_t)heart;
    pid_t pid = getpid(), tid = (pid_t)syscall(SYS_gettid);
    pthread_t self = pthread_self();
    uint64_t on_stack[64];
    own_number = mix((uint64_t)me);
    fill(on_stack, sizeof on_stack, (uint64_t)me);
    for (;;) {
        EQUAL(getpid(), pid);
        EQUAL(syscall(SYS_gettid), tid);
        CHECK(pthread_equal(self, pthread_self()));
        EQUAL(own_number, mix((uint64_t)me));
        CHECK(filled(on_stack, sizeof on_stack, (uint64_t)me));
        beat(me);
    }
    return NULL;
}
static pthread_t thread(void *(*run)(void *), int heart) {
    pthread_t made;
    if ((errno = pthread_create(&made, NULL, run, (void *)(intptr_t)heart))) bad("pthread_create: %s", strerror(errno));
    return made;
}
static void set_threads(void) {
    share();
    for (hearts = 0; hearts < 40; hearts++) thread(thread_lives, hearts);
}
static void set_threads_in_tree(void) {
    share();
    for (int i = 0; i < 5; i++)
        if (!MUST(fork())) {
            for (int k = 1; k < 6; k++) thread(thread_lives, i * 6 + k);
            live(i * 6, getppid());
        }
    hearts = 30;
}

static char state_of(pid_t pid) {
    char path[64], state;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    /* Whoever is traced is stopped for a moment in another way. */
    while ((state = strrchr(proc(path), ')')[2]) == 't') nap(500);
    return state;
}

/* The first thread of a process is gone, the others go on. */
static void set_leaderless(void) {
    share();
    hearts = 3;
    pid_t pid = MUST(fork());
    if (!pid) {
        for (int i = 0; i < hearts; i++) thread(thread_lives, i);
        pthread_exit(NULL);
    }
    while (state_of(pid) != 'Z') nap(500);
    atomic_store(&shared->numbers[0], pid);
}
static void verify_leaderless(void) {
    all_alive(hearts);
    EQUAL(state_of(number(0)), 'Z');
}

/* A process thread that was made by the main thread of a process and one that sleeps on a lock of the C library. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned long asked, answered;
static void *answers(void *unused) {
    for (;;) {
        pthread_mutex_lock(&lock);
        while (asked == answered) pthread_cond_wait(&changed, &lock);
        answered = asked;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
    }
    return unused;
}
static void set_condition(void) { thread(answers, 0); }
static void verify_condition(void) {
    pthread_mutex_lock(&lock);
    asked++;
    pthread_cond_broadcast(&changed);
    for (int tries = 0; asked != answered; tries++) {
        struct timespec limit;
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += 1;
        int error = pthread_cond_timedwait(&changed, &lock, &limit);
        if (error && (error != ETIMEDOUT || tries > 100)) bad("a thread that waits on a condition: %s", strerror(error));
    }
    pthread_mutex_unlock(&lock);
}

/* Robust mutex shared by processes: its owner dies, and the next one is told. */
static pthread_mutex_t *robust;
static void set_robust(void) {
    share();
    robust = map(4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(robust, &kind);
}
static void verify_robust(void) {
    pid_t pid = MUST(fork());
    if (!pid) {
        EQUAL(pthread_mutex_lock(robust), 0);
        nap(3000);
        _exit(0);
    }
    MUST(waitpid(pid, NULL, 0));
    EQUAL(pthread_mutex_lock(robust), EOWNERDEAD);
    EQUAL(pthread_mutex_consistent(robust), 0);
    EQUAL(pthread_mutex_unlock(robust), 0);
}

/* Ended children that nobody has waited for. */
enum { ZOMBIES = 5 };
static const struct { int code, status; } fates[ZOMBIES] = {
    {CLD_EXITED, 0}, {CLD_EXITED, 7}, {CLD_KILLED, SIGTERM}, {CLD_KILLED, SIGKILL}, {CLD_EXITED, 255}};
static pid_t zombies[ZOMBIES];
static void set_zombies(void) {
    for (int i = 0; i < ZOMBIES; i++) {
        if ((zombies[i] = MUST(fork()))) continue;
        if (fates[i].code == CLD_EXITED) _exit(fates[i].status);
        kill(getpid(), fates[i].status);
        for (;;) pause();
    }
}
static void verify_zombies(void) {
    for (int i = 0; i < ZOMBIES; i++) {
        siginfo_t info;
        MUST(waitid(P_PID, (id_t)zombies[i], &info, WEXITED | WNOWAIT));
        EQUAL(info.si_pid, zombies[i]);
        EQUAL(info.si_code, fates[i].code);
        EQUAL(info.si_status, fates[i].status);
    }
}

/* A zombie that leads a session and a group in which others live. */
static void set_zombie_leader_of_session(void) {
    share();
    hearts = 2;
    pid_t leader = MUST(fork());
    if (!leader) {
        setsid();
        for (int i = 0; i < hearts; i++)
            if (!MUST(fork())) {
                number(0);
                EQUAL(getsid(0), number(1));
                live(i, 1);
            }
        _exit(3);
    }
    siginfo_t info;
    MUST(waitid(P_PID, (id_t)leader, &info, WEXITED | WNOWAIT));
    atomic_store(&shared->numbers[1], leader);
    atomic_store(&shared->numbers[0], 1);
}
static void verify_zombie_leader_of_session(void) {
    all_alive(hearts);
    EQUAL(state_of(number(1)), 'Z');
    EQUAL(getpgid(number(1)), number(1));
}

/* Stopped children. */
static pid_t stopped;
static int stop_by = SIGSTOP, stop_waited;
static void set_stopped(void) {
    share();
    stopped = child(0);
    alive(0);
    /* The kernel does not stop groups that nobody looks after, as the one of process 1. */
    MUST(setpgid(stopped, stopped));
    MUST(kill(stopped, stop_by));
    siginfo_t info;
    MUST(waitid(P_PID, (id_t)stopped, &info, WSTOPPED | (stop_waited ? 0 : WNOWAIT)));
}
/* One that has signals to come, a second stop among them. */
static void set_stopped_with_signals(void) {
    share();
    sigset_t wait;
    sigemptyset(&wait);
    for (int i = 0; i < 3; i++) MUST(sigaddset(&wait, (int[]){SIGHUP, SIGUSR1, SIGRTMIN}[i]));
    stopped = MUST(fork());
    if (!stopped) {
        MUST(sigprocmask(SIG_BLOCK, &wait, NULL));
        for (int i = 0; i < 3; i++) MUST(raise((int[]){SIGHUP, SIGUSR1, SIGRTMIN}[i]));
        for (;;) {
            sigset_t come;
            MUST(sigpending(&come));
            for (int i = 1; i <= SIGRTMAX; i++)
                if (i != SIGCONT) EQUAL(sigismember(&come, i), sigismember(&wait, i));
            beat(0);
        }
    }
    alive(0);
    MUST(setpgid(stopped, stopped));
    MUST(kill(stopped, SIGSTOP));
    siginfo_t info;
    MUST(waitid(P_PID, (id_t)stopped, &info, WSTOPPED | WNOWAIT));
    MUST(kill(stopped, SIGSTOP));
}
static void set_stopped_by_tstp(void) {
    stop_by = SIGTSTP;
    set_stopped();
}
static void set_stopped_and_waited(void) {
    stop_waited = 1;
    set_stopped();
}
static void verify_stopped(void) {
    static int turn;
    siginfo_t info = {0};
    /* A stopped process stays so until it is told. */
    unsigned long beats = atomic_load(&shared->beats[0]);
    EQUAL(state_of(stopped), 'T');
    MUST(waitid(P_PID, (id_t)stopped, &info, WSTOPPED | WNOWAIT | WNOHANG));
    EQUAL(info.si_pid, stop_waited ? 0 : stopped);
    if (!stop_waited) {
        EQUAL(info.si_code, CLD_STOPPED);
        EQUAL(info.si_status, stop_by);
    }
    nap(2000);
    EQUAL(atomic_load(&shared->beats[0]), beats);
    if (++turn % 40) return;
    if (!stop_waited) MUST(waitid(P_PID, (id_t)stopped, &info, WSTOPPED));
    MUST(kill(stopped, SIGCONT));
    alive(0);
    alive(0);
    MUST(kill(stopped, stop_by));
    MUST(waitid(P_PID, (id_t)stopped, &info, WSTOPPED | (stop_waited ? 0 : WNOWAIT)));
    while (state_of(stopped) != 'T') nap(500);
}

/* Sessions and groups in a family. */
static void set_sessions(void) {
    share();
    hearts = 6;
    for (int i = 0; i < 2; i++) {
        pid_t leader = getpid();
        if (MUST(fork())) continue;
        MUST(setsid());
        group = getsid(0);
        EQUAL(group, getpid());
        child(i * 3 + 1); /* in the leader's group */
        pid_t pid = MUST(fork());
        if (!pid) {
            group = getpid();
            MUST(setpgid(0, 0));
            live(i * 3 + 2, getppid());
        }
        live(i * 3, leader);
    }
}
/* Two begin sessions after one of them has begotten a child of the old session. */
static void set_late_sessions(void) {
    share();
    hearts = 3;
    pid_t first = getpid(), second = MUST(fork());
    if (second) return;
    second = getpid();
    pid_t third = MUST(fork());
    if (third) {
        number(0);
        MUST(setsid());
        live(0, first);
    }
    third = getpid();
    pid_t fourth = MUST(fork());
    if (!fourth) live(2, third);
    MUST(setsid());
    atomic_store(&shared->numbers[0], 1);
    live(1, second);
}
/* The leader is gone altogether, its session and its group have members. */
static void set_lost_leader(void) {
    share();
    hearts = 2;
    pid_t leader = MUST(fork());
    if (!leader) {
        MUST(setsid());
        for (int i = 0; i < hearts; i++)
            if (!MUST(fork())) {
                pid_t session = number(0);
                EQUAL(getsid(0), session);
                EQUAL(getpgrp(), session);
                EQUAL(getppid(), 1);
                live(i, 1);
            }
        _exit(0);
    }
    MUST(waitpid(leader, NULL, 0));
    atomic_store(&shared->numbers[0], leader);
}
static void verify_lost_leader(void) {
    all_alive(hearts);
    FAILS(kill(number(0), 0), ESRCH);
}
/* A group whose leader is gone, in a session whose leader lives. */
static void set_lost_group(void) {
    share();
    hearts = 1;
    pid_t leader = MUST(fork());
    if (!leader) {
        MUST(setpgid(0, 0));
        if (!MUST(fork())) {
            pid_t group = number(0);
            EQUAL(getpgrp(), group);
            live(0, 1);
        }
        _exit(0);
    }
    MUST(waitpid(leader, NULL, 0));
    atomic_store(&shared->numbers[0], leader);
}

/* Orphans go to the nearest subreaper. */
static void set_subreaper(void) {
    share();
    hearts = 2;
    pid_t init = getpid();
    if (MUST(fork())) return;
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t self = getpid(), middle = MUST(fork());
    if (!middle) {
        if (!MUST(fork())) {
            number(0);
            live(1, self);
        }
        _exit(0);
    }
    MUST(waitpid(middle, NULL, 0));
    atomic_store(&shared->numbers[0], 1);
    for (;;) {
        int on = 0;
        MUST(prctl(PR_GET_CHILD_SUBREAPER, &on));
        EQUAL(on, 1);
        EQUAL(getppid(), init);
        /* It still works: an orphan of now is a child of ours. */
        middle = MUST(fork());
        if (!middle) {
            pid_t orphan = MUST(fork());
            if (!orphan) _exit(9);
            _exit(0);
        }
        MUST(waitpid(middle, NULL, 0));
        int status, found = 0;
        if (MUST(waitpid(-1, &status, 0))) found = WIFEXITED(status) && WEXITSTATUS(status) == 9;
        CHECK(found);
        beat(0);
    }
}

/* Short processes come and go, begotten with some more flags. */
static void storm(int heart, long flags) {
    for (;;) {
        pid_t pids[4];
        for (int i = 0; i < 4; i++)
            if (!(pids[i] = MUST(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0)))) _exit(i + 1);
        for (int i = 0; i < 4; i++) {
            int status;
            EQUAL(MUST(waitpid(pids[i], &status, 0)), pids[i]);
            CHECK(WIFEXITED(status));
            EQUAL(WEXITSTATUS(status), i + 1);
        }
        atomic_fetch_add(&shared->beats[heart], 1);
    }
}
static void set_fork_storm(void) {
    share();
    for (hearts = 0; hearts < 3; hearts++)
        if (!MUST(fork())) storm(hearts, 0);
}
/* Whoever traces the parent is to trace the child, for whose end one of them waits where nobody can stop it. */
static void set_traced_storm(void) {
    share();
    for (hearts = 0; hearts < 3; hearts++)
        if (!MUST(fork())) storm(hearts, hearts ? CLONE_PTRACE : CLONE_PTRACE | CLONE_VFORK);
}
static void exec_storm(int heart) {
    char *words[] = {"guest", "seven", NULL};
    for (;;) {
        pid_t pid = MUST(vfork());
        if (!pid) {
            execv("/proc/self/exe", words);
            _exit(1);
        }
        int status;
        EQUAL(MUST(waitpid(pid, &status, 0)), pid);
        CHECK(WIFEXITED(status));
        EQUAL(WEXITSTATUS(status), 7);
        atomic_fetch_add(&shared->beats[heart], 1);
    }
}
static void set_exec_storm(void) {
    share();
    for (hearts = 0; hearts < 2; hearts++)
        if (!MUST(fork())) exec_storm(hearts);
}
static void *short_life(void *value) { return (void *)((intptr_t)value * 3); }
static void *thread_storm(void *heart) {
    for (;;) {
        pthread_t made[3];
        void *result;
        for (int i = 0; i < 3; i++) made[i] = thread(short_life, i);
        for (int i = 0; i < 3; i++) {
            EQUAL(pthread_join(made[i], &result), 0);
            EQUAL((intptr_t)result, i * 3);
        }
        atomic_fetch_add(&shared->beats[(intptr_t)heart], 1);
    }
    return NULL;
}
static void set_thread_storm(void) {
    share();
    for (hearts = 0; hearts < 2; hearts++) thread(thread_storm, hearts);
}

/* A pid that was made long ago is far from those that are made now. */
static void set_late_pid(void) {
    share();
    for (int i = 0; i < 300; i++) {
        pid_t pid = MUST(fork());
        if (!pid) _exit(0);
        MUST(waitpid(pid, NULL, 0));
    }
    hearts = 1;
    CHECK(child(0) > 300);
}

/* Processes that share more than a parent and a child do. */
static char stack[1 << 16] __attribute__((aligned(16)));
static volatile int in_common;
static int sharer(void *fd) {
    for (;;) {
        in_common++;
        EQUAL(fcntl((int)(intptr_t)fd, F_GETFD), 0);
        beat(0);
    }
}
static void set_shared_memory(void) {
    share();
    hearts = 1;
    MUST(clone(sharer, stack + sizeof stack, CLONE_VM | SIGCHLD, (void *)(intptr_t)status_fd));
}
static void verify_shared_memory(void) {
    int before = in_common;
    alive(0);
    alive(0);
    CHECK(in_common != before);
}
static int numbered;
/* It has the descriptors of the others, and directories of its own. */
static int roamer(void *unused) {
    char where[8] = "";
    MUST(chdir("/proc"));
    umask(0123);
    for (;;) {
        EQUAL(MUST(fcntl(numbered, F_GETFD)), FD_CLOEXEC);
        EQUAL(umask(0123), 0123);
        CHECK(getcwd(where, sizeof where) && !strcmp(where, "/proc"));
        beat(1);
    }
    return unused != NULL;
}
static int opener(void *unused) {
    MUST(clone(roamer, stack + sizeof stack / 2, CLONE_FILES | SIGCHLD, NULL));
    for (;;) {
        int fd = MUST(open("/proc/self/stat", O_RDONLY));
        atomic_store(&shared->numbers[0], fd);
        while (atomic_load(&shared->numbers[0])) nap(500);
        FAILS(close(fd), EBADF);
        mode_t mask = umask(0);
        EQUAL(mask, atomic_load(&shared->numbers[1]));
        umask(mask);
        struct stat here;
        MUST(stat(".", &here));
        EQUAL(here.st_nlink, 0);
        beat(0);
    }
    return unused != NULL;
}
static void set_shared_files(void) {
    share();
    hearts = 2;
    numbered = MUST(fcntl(status_fd, F_DUPFD_CLOEXEC, 77));
    MUST(mkdir("/gone", 0755));
    MUST(chdir("/gone"));
    MUST(rmdir("/gone"));
    MUST(clone(opener, stack + sizeof stack, CLONE_FILES | CLONE_FS | SIGCHLD, NULL));
}
static void verify_shared_files(void) {
    static int mask;
    /* What the other opens, we close; what we mask, it has masked. */
    MUST(close(number(0)));
    umask((mode_t)(mask = (mask + 1) & 077));
    atomic_store(&shared->numbers[1], mask);
    atomic_store(&shared->numbers[0], 0);
    all_alive(2);
}
/* Processes that share their directories in a mount namespace of their own. */
static int lodger(void *unused) {
    for (;;) beat(0);
    return unused != NULL;
}
static void set_shared_elsewhere(void) {
    share();
    hearts = 2;
    if (MUST(fork())) return;
    MUST(unshare(CLONE_NEWNS));
    MUST(clone(lodger, stack + sizeof stack, CLONE_FS | SIGCHLD, NULL));
    for (;;) beat(1);
}

static const struct mode modes[] = {
    {"wide", set_wide, hearts_beat},
    {"deep", set_deep, hearts_beat},
    {"tree", set_tree, hearts_beat},
    {"threads", set_threads, hearts_beat},
    {"threads-in-tree", set_threads_in_tree, hearts_beat},
    {"leaderless", set_leaderless, verify_leaderless},
    {"condition", set_condition, verify_condition},
    {"robust-mutex", set_robust, verify_robust},
    {"zombies", set_zombies, verify_zombies},
    {"zombie-leads-session", set_zombie_leader_of_session, verify_zombie_leader_of_session},
    {"stopped", set_stopped, verify_stopped},
    {"stopped-with-signals", set_stopped_with_signals, verify_stopped},
    {"stopped-by-tstp", set_stopped_by_tstp, verify_stopped},
    {"stopped-and-waited", set_stopped_and_waited, verify_stopped},
    {"sessions", set_sessions, hearts_beat},
    {"late-sessions", set_late_sessions, hearts_beat},
    {"lost-session-leader", set_lost_leader, verify_lost_leader},
    {"lost-group-leader", set_lost_group, hearts_beat},
    {"subreaper", set_subreaper, hearts_beat},
    {"fork-storm", set_fork_storm, hearts_beat},
    {"traced-storm", set_traced_storm, hearts_beat},
    {"exec-storm", set_exec_storm, hearts_beat},
    {"thread-storm", set_thread_storm, hearts_beat},
    {"late-pid", set_late_pid, hearts_beat},
    {"shared-memory", set_shared_memory, verify_shared_memory},
    {"shared-files", set_shared_files, verify_shared_files},
    {"shared-elsewhere", set_shared_elsewhere, hearts_beat},
    {0},
};
int main(int argc, char **argv) { return argc == 2 && !strcmp(argv[1], "seven") ? 7 : guest(argc, argv, modes); }
