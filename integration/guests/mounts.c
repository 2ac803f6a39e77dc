/* Mount namespaces of a job's own: what is mounted in them, and what is open there. */
#include "guest.h"
#include <pthread.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>

static int file, other, watch;
static char *page;

static void tmpfs(const char *at, const char *name) { MUST(mount(name, at, "tmpfs", 0, "size=1m")); }
static void alone(void) {
    MUST(unshare(CLONE_NEWNS));
    MUST(mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL));
}
static void dir(const char *path) {
    if (mkdir(path, 0755) && errno != EEXIST) bad("mkdir %s: %s", path, strerror(errno));
}
static int there(const char *path) { return !access(path, F_OK); }
static void holds(const char *path, const char *content) {
    if (strcmp(proc(path), content)) bad("%s holds %s, not %s", path, proc(path), content);
}
static void put(const char *path, const char *content) { MUST(close(make(path, content, 0))); }
static int mounts(const char *word) {
    int count = 0;
    for (const char *at = proc("/proc/self/mounts"); (at = strstr(at, word)); at++) count++;
    return count;
}
/* Does something in a copy of its own of the namespace that it is in. */
static void aside(void (*work)(void)) {
    int status;
    pid_t child = MUST(fork());
    if (!child) {
        MUST(chdir("/"));
        alone();
        work();
        _exit(0);
    }
    MUST(waitpid(child, &status, 0));
    EQUAL(status, 0);
}

/* A process with a /tmp of its own: with files that are open, deleted, mapped, watched, and its working directory. */
static void set_private(void) {
    share();
    dir("/tmp"), put("/tmp/file", "everybody's");
    if (MUST(fork())) return;
    alone();
    tmpfs("/tmp", "private");
    dir("/tmp/dir"), put("/tmp/dir/read", "to be read");
    MUST(chdir("/tmp/dir"));
    file = make("/tmp/file", "my own", 0);
    other = make("/tmp/gone", "deleted", 0);
    MUST(unlink("/tmp/gone"));
    int mapped = make("/tmp/mapped", "", 0);
    MUST(ftruncate(mapped, 4096));
    page = MUST((char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0));
    MUST(close(mapped));
    strcpy(page, "mapped");
    watch = MUST(inotify_init1(IN_NONBLOCK));
    MUST(inotify_add_watch(watch, "/tmp/dir", IN_CREATE));
    for (;;) {
        char text[64] = "";
        EQUAL(MUST(pread(file, text, sizeof text, 0)), 6);
        CHECK(!strcmp(text, "my own"));
        EQUAL(MUST(lseek(file, 0, SEEK_CUR)), 6);
        EQUAL(MUST(pread(other, text, sizeof text, 0)), 7);
        struct stat about;
        MUST(fstat(other, &about));
        EQUAL(about.st_nlink, 0);
        holds("read", "to be read");
        EQUAL(strncmp(proc("/tmp/mapped"), "mapped", 7), 0);
        /* What has happened and is unread can't be carried, so nothing happens. */
        char name[64];
        snprintf(name, sizeof name, "/proc/self/fdinfo/%d", watch);
        CHECK(strstr(proc(name), "inotify wd:1 "));
        FAILS(unlink("/tmp/everybody"), ENOENT);
        EQUAL(mounts("private /tmp "), 1);
        beat(0);
    }
}
static void verify_private(void) {
    alive(0);
    holds("/tmp/file", "everybody's");
    put("/tmp/everybody", "");
    EQUAL(mounts("private /tmp "), 0);
}

/* One whose root is another file system, without any of the old mounts. */
static void set_pivot(void) {
    share();
    dir("/jail");
    if (MUST(fork())) return;
    alone();
    tmpfs("/jail", "jail");
    dir("/jail/old"), dir("/jail/proc"), dir("/jail/bin"), dir("/jail/sub");
    MUST(mount("/bin", "/jail/bin", NULL, MS_BIND, NULL));
    MUST(mount(NULL, "/jail/bin", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID, NULL));
    MUST(chdir("/jail"));
    MUST(syscall(SYS_pivot_root, ".", "old"));
    MUST(umount2("/old", MNT_DETACH));
    MUST(mount("proc", "/proc", "proc", MS_NOEXEC, NULL));
    put("/sub/file", "inside");
    MUST(mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, "size=1m"));
    MUST(chdir("/sub"));
    MUST(chroot("/sub"));
    for (;;) {
        holds("/file", "inside");
        holds("file", "inside");
        FAILS(open("/new", O_CREAT | O_RDWR, 0600), EROFS);
        CHECK(!there("/proc"));
        beat(0);
    }
}
static void verify_pivot(void) {
    alive(0);
    /* Who is not chrooted sees all of it. */
    static char text[4096];
    int status;
    pid_t child = MUST(fork());
    if (!child) {
        int there_ns = MUST(open("/proc/2/ns/mnt", O_RDONLY));
        MUST(setns(there_ns, CLONE_NEWNS));
        const char *list = proc("/proc/self/mounts");
        snprintf(text, sizeof text, "%s", list);
        CHECK(!strncmp(text, "jail / tmpfs ro,", 16));
        CHECK(strstr(text, " /bin "));
        CHECK(strstr(text, "proc /proc proc rw,noexec,"));
        EQUAL(mounts("\n"), 3);
        CHECK(there("/bin/sh"));
        FAILS(open("/bin/new", O_CREAT | O_RDWR, 0600), EROFS);
        _exit(0);
    }
    MUST(waitpid(child, &status, 0));
    EQUAL(status, 0);
}

/* The root is read-only in one, and in the other it is not. */
static void set_read_only(void) {
    share();
    if (MUST(fork())) return;
    alone();
    MUST(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
    for (;;) {
        FAILS(open("/new", O_CREAT | O_RDWR, 0600), EROFS);
        beat(0);
    }
}
static void verify_read_only(void) {
    alive(0);
    put("/new", "");
    MUST(unlink("/new"));
}

/* Mounts of two namespaces are peers, one of a third only receives, and one has nothing to do with them. */
static void receive(int heart, const char *word, int how) {
    if (MUST(fork())) return;
    MUST(unshare(CLONE_NEWNS));
    if (how) MUST(mount(NULL, "/shared", NULL, how, NULL));
    for (;;) {
        int turn = atomic_load(&shared->numbers[0]);
        if (turn && atomic_load(&shared->numbers[1 + heart]) != turn) {
            EQUAL(mounts(word), how == MS_PRIVATE ? 0 : 1);
            if (!how) {
                tmpfs("/shared/back", "back");
            } else {
                tmpfs("/shared/kept", "kept");
                MUST(umount("/shared/kept"));
            }
            atomic_store(&shared->numbers[1 + heart], turn);
        }
        beat(heart);
    }
}
static void set_peers(void) {
    share();
    dir("/shared"), tmpfs("/shared", "shared");
    dir("/shared/there"), dir("/shared/back"), dir("/shared/kept");
    MUST(mount(NULL, "/shared", NULL, MS_SHARED, NULL));
    receive(0, "sent /shared/there", 0);
    receive(1, "sent /shared/there", MS_SLAVE);
    receive(2, "sent /shared/there", MS_PRIVATE);
}
static void verify_peers(void) {
    static int turn;
    all_alive(3);
    tmpfs("/shared/there", "sent");
    atomic_store(&shared->numbers[0], ++turn);
    for (int heart = 0; heart < 3; heart++)
        while (atomic_load(&shared->numbers[1 + heart]) != turn) alive(heart);
    EQUAL(mounts("back /shared/back"), 1);
    EQUAL(mounts("kept"), 0);
    MUST(umount("/shared/back"));
    MUST(umount("/shared/there"));
}

/* All of the container is shared with a namespace that was made from it. */
static void set_shared_root(void) {
    share();
    dir("/one"), dir("/two");
    tmpfs("/one", "before"), put("/one/file", "before");
    if (MUST(fork())) return;
    MUST(unshare(CLONE_NEWNS));
    for (;;) {
        int turn = atomic_load(&shared->numbers[0]);
        holds("/one/file", "before");
        if (turn && atomic_load(&shared->numbers[1]) != turn) {
            holds("/two/file", "after");
            MUST(umount2("/two", MNT_DETACH));
            atomic_store(&shared->numbers[1], turn);
        }
        beat(0);
    }
}
static void verify_shared_root(void) {
    static int turn;
    tmpfs("/two", "after"), put("/two/file", "after");
    atomic_store(&shared->numbers[0], ++turn);
    while (atomic_load(&shared->numbers[1]) != turn) alive(0);
    CHECK(!there("/two/file"));
    holds("/one/file", "before");
}

/* A file system in memory that several namespaces have, one of them only a part, and one of a part of it. */
static void set_same(void) {
    share();
    dir("/same"), tmpfs("/same", "same"), dir("/same/part"), put("/same/part/file", "0");
    for (int heart = 0; heart < 2; heart++) {
        if (MUST(fork())) continue;
        alone();
        if (heart) {
            dir("/mnt");
            MUST(mount("/same/part", "/mnt", NULL, MS_BIND, NULL));
            MUST(umount("/same"));
        }
        for (;;) {
            int turn = atomic_load(&shared->numbers[0]);
            if (turn && atomic_load(&shared->numbers[1 + heart]) != turn) {
                char text[16];
                snprintf(text, sizeof text, "%d", turn);
                holds(heart ? "/mnt/file" : "/same/part/file", text);
                atomic_store(&shared->numbers[1 + heart], turn);
            }
            CHECK(!heart || !there("/same/part"));
            beat(heart);
        }
    }
}
static void verify_same(void) {
    static int turn;
    char text[16];
    snprintf(text, sizeof text, "%d", ++turn);
    put("/same/part/file", text);
    atomic_store(&shared->numbers[0], turn);
    for (int heart = 0; heart < 2; heart++)
        while (atomic_load(&shared->numbers[1 + heart]) != turn) alive(heart);
}

/* Mounts over mounts, each with content, in a namespace of its own; and files beneath that are open all the same. */
static void look_below(void) {
    holds("/deep/top", "three");
    MUST(umount2("/deep", MNT_DETACH));
    holds("/deep/in/file", "two");
    MUST(umount2("/deep/in", MNT_DETACH));
    holds("/deep/in/file", "one");
    MUST(umount2("/deep", MNT_DETACH));
    CHECK(!there("/deep/in"));
}
static void set_hidden(void) {
    share();
    dir("/deep");
    if (MUST(fork())) return;
    alone();
    tmpfs("/deep", "one"), dir("/deep/in"), put("/deep/in/file", "one"), dir("/deep/in/dir");
    file = MUST(open("/deep/in/file", O_RDWR | O_APPEND));
    other = MUST(open("/deep/in/dir", O_RDONLY | O_DIRECTORY));
    MUST(mkfifo("/deep/in/fifo", 0600));
    watch = MUST(open("/deep/in/fifo", O_RDWR));
    EQUAL(MUST(write(watch, "x", 1)), 1);
    MUST(chdir("/deep/in"));
    tmpfs("/deep/in", "two"), put("/deep/in/file", "two");
    tmpfs("/deep", "three"), put("/deep/top", "three");
    for (;;) {
        char text[16] = "";
        EQUAL(MUST(pread(file, text, sizeof text, 0)), 3);
        CHECK(!strcmp(text, "one"));
        holds("file", "one");
        MUST(mkdirat(other, "new", 0700));
        CHECK(there("dir/new"));
        MUST(rmdir("dir/new"));
        EQUAL(MUST(read(watch, text, sizeof text)), 1);
        EQUAL(MUST(write(watch, "x", 1)), 1);
        aside(look_below);
        beat(0);
    }
}
static void verify_hidden(void) {
    alive(0);
    CHECK(!there("/deep/in"));
}

/* Sockets of one name in two namespaces; somebody in the other one is connected. */
static struct sockaddr_un at_run = {AF_UNIX, "/run/socket"};
static int listening(void) {
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    unlink(at_run.sun_path);
    MUST(bind(fd, (struct sockaddr *)&at_run, sizeof at_run));
    MUST(listen(fd, 5));
    return fd;
}
static int connected(void) {
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(fd, (struct sockaddr *)&at_run, sizeof at_run));
    return fd;
}
static void serve(int fd, char answer) {
    int client = MUST(accept(fd, NULL, NULL));
    EQUAL(MUST(write(client, &answer, 1)), 1);
    MUST(close(client));
}
static void ask(char answer) {
    char got;
    int fd = connected();
    EQUAL(MUST(read(fd, &got, 1)), 1);
    EQUAL(got, answer);
    MUST(close(fd));
}
static int server, waiting, pair[2];
static void set_sockets(void) {
    share();
    dir("/run");
    server = listening();
    if (!MUST(fork())) {
        alone();
        tmpfs("/run", "run");
        int own = listening();
        atomic_store(&shared->numbers[0], 1);
        for (;;) {
            if (!MUST(fork())) {
                ask('b');
                _exit(0);
            }
            serve(own, 'b');
            MUST(wait(NULL));
            beat(0);
        }
    }
    number(0);
    waiting = connected();
    pair[0] = MUST(accept(server, NULL, NULL));
}
static void verify_sockets(void) {
    char got = 0;
    alive(0);
    EQUAL(MUST(write(waiting, "w", 1)), 1);
    EQUAL(MUST(read(pair[0], &got, 1)), 1);
    EQUAL(got, 'w');
    pid_t child = MUST(fork());
    if (!child) {
        ask('a');
        _exit(0);
    }
    serve(server, 'a');
    MUST(waitpid(child, NULL, 0));
}

/* Namespaces made from namespaces, with several processes and threads in one of them, and one whose maker has gone. */
static void *thread(void *heart) {
    for (;;) {
        holds("/nest/file", "outer");
        beat((int)(intptr_t)heart);
    }
    return NULL;
}
static void inner(int heart) {
    for (;;) {
        holds("/nest/file", "outer");
        holds("/nest/inner/file", "inner");
        beat(heart);
    }
}
static void set_nested(void) {
    share();
    dir("/nest");
    if (MUST(fork())) return;
    alone();
    tmpfs("/nest", "outer"), put("/nest/file", "outer"), dir("/nest/inner");
    if (!MUST(fork())) thread((void *)0);
    if (!MUST(fork())) {
        alone();
        tmpfs("/nest/inner", "inner"), put("/nest/inner/file", "inner");
        if (!MUST(fork())) inner(1);
        inner(2);
    }
    pthread_t made;
    pthread_create(&made, NULL, thread, (void *)3);
    CHECK(!there("/nest/inner/file"));
    thread((void *)4);
}
static void verify_nested(void) {
    all_alive(5);
    CHECK(!there("/nest/file"));
}

/* Handles of the namespaces that a process and its child are in. */
static const char *const kinds[] = {"mnt", "net", "pid", "user", "uts", "ipc", "cgroup"};
enum { KINDS = sizeof kinds / sizeof *kinds };
static int handles[KINDS], childs;
static ino_t namespace(int pid, const char *kind) {
    char path[64];
    struct stat about;
    snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, kind);
    MUST(stat(path, &about));
    return about.st_ino;
}
static void set_handles(void) {
    share();
    dir("/own");
    pid_t child = MUST(fork());
    if (!child) {
        alone();
        tmpfs("/own", "own"), put("/own/file", "own");
        for (;;) {
            atomic_store(&shared->numbers[0], 1);
            beat(0);
        }
    }
    number(0);
    for (int i = 0; i < KINDS; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
        handles[i] = MUST(open(path, O_RDONLY | O_CLOEXEC));
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", child);
    childs = MUST(open(path, O_RDONLY));
    atomic_store(&shared->numbers[1], child);
}
static void verify_handles(void) {
    alive(0);
    for (int i = 0; i < KINDS; i++) {
        AGREE(inode(handles[i]), namespace(getpid(), kinds[i]));
        EQUAL(MUST(fcntl(handles[i], F_GETFD)), FD_CLOEXEC);
    }
    AGREE(inode(childs), namespace(atomic_load(&shared->numbers[1]), "mnt"));
    int status;
    pid_t child = MUST(fork());
    if (!child) {
        MUST(setns(childs, CLONE_NEWNS));
        holds("/own/file", "own");
        MUST(setns(handles[0], CLONE_NEWNS));
        CHECK(!there("/own/file"));
        _exit(0);
    }
    MUST(waitpid(child, &status, 0));
    EQUAL(status, 0);
}

/* In a directory without a name, and with a file of /proc open that is of another mount namespace. */
static void set_gone_and_late(void) {
    share();
    if (!MUST(fork())) {
        MUST(unshare(CLONE_NEWNS));
        for (;;) beat(0);
    }
    alive(0);
    if (!MUST(fork())) {
        struct stat about;
        char text[64];
        int theirs = MUST(open("/proc/2/ns/mnt", O_RDONLY)), ours = MUST(open("/proc/1/ns/mnt", O_RDONLY));
        MUST(setns(theirs, CLONE_NEWNS));
        file = MUST(open("/proc/1/stat", O_RDONLY));
        MUST(setns(ours, CLONE_NEWNS));
        MUST(close(ours));
        MUST(close(theirs));
        dir("/gone");
        MUST(chdir("/gone"));
        MUST(rmdir("/gone"));
        for (;;) {
            MUST(stat(".", &about));
            EQUAL(about.st_nlink, 0);
            CHECK(!getcwd(text, sizeof text) && errno == ENOENT);
            MUST(pread(file, text, 3, 0));
            CHECK(!memcmp(text, "1 (", 3));
            beat(1);
        }
    }
    alive(1);
}
static void verify_gone_and_late(void) { all_alive(2); }

/* The first process goes to another root: a directory of the host. */
static void set_pivot_of_first(void) {
    dir("/root/new");
    dir("/root/new/old");
    MUST(mount("/root/new", "/root/new", NULL, MS_BIND, NULL));
    MUST(chdir("/root/new"));
    MUST(syscall(SYS_pivot_root, ".", "old"));
    MUST(chdir("/"));
}
static void verify_pivot_of_first(void) { CHECK(there("/old/root/new")); }

static const struct mode modes[] = {
    {"gone-and-late", set_gone_and_late, verify_gone_and_late},
    {"pivot-of-first", set_pivot_of_first, verify_pivot_of_first},
    {"private", set_private, verify_private},
    {"pivot", set_pivot, verify_pivot},
    {"read-only", set_read_only, verify_read_only},
    {"peers", set_peers, verify_peers},
    {"shared-root", set_shared_root, verify_shared_root},
    {"same", set_same, verify_same},
    {"hidden", set_hidden, verify_hidden},
    {"sockets", set_sockets, verify_sockets},
    {"nested", set_nested, verify_nested},
    {"handles", set_handles, verify_handles},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
