/* Marks of files, mounts and file systems. */
#include "guest.h"
#include <linux/capability.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>

#define EVICTABLE 0x200 /* FAN_MARK_EVICTABLE */
#define TELLS_NAMES 0xe00 /* FAN_REPORT_DFID_NAME and FAN_REPORT_FID */

static int group;
/* How the kernel shows the marks, but for the numbers of files. */
static char marks[4096];
static void shown(char *into) {
    char name[64], *out = into;
    snprintf(name, sizeof name, "/proc/self/fdinfo/%d", group);
    for (const char *line = strstr(proc(name), "fanotify "); line; line = strstr(line + 1, "fanotify ")) {
        const char *end = strchr(line, '\n'), *from = strstr(line, "mflags:"), *to = strstr(line, "fhandle");
        if (!from || from > end) from = line;
        if (!to || to > end) to = end;
        /* What it is a mark of, and how. */
        out += sprintf(out, "%.3s %.*s\n", line + strlen("fanotify "), (int)(to - from), from);
    }
}
static void mark(unsigned flags, uint64_t events, const char *path) {
    MUST(fanotify_mark(group, FAN_MARK_ADD | flags, events, AT_FDCWD, path));
}
static void quiet(void) {
    int bytes;
    MUST(ioctl(group, FIONREAD, &bytes));
    EQUAL(bytes, 0);
}
/* The next event is this one, of this file, by this process. */
static void tells(uint64_t events, const char *path, pid_t pid) {
    union {
        struct fanotify_event_metadata event;
        char room[4096];
    } got;
    size_t held = (size_t)MUST(read(group, &got, sizeof got.event));
    EQUAL(held, sizeof got.event);
    EQUAL(got.event.mask, events);
    EQUAL(got.event.pid, pid);
    char name[64], found[256] = "";
    snprintf(name, sizeof name, "/proc/self/fd/%d", got.event.fd);
    MUST(readlink(name, found, sizeof found - 1));
    if (strcmp(found, path)) bad("an event of %s, not %s", found, path);
    EQUAL(MUST(fcntl(got.event.fd, F_GETFL)) & O_APPEND, O_APPEND);
    close(got.event.fd);
}
static pid_t writes(const char *path) {
    pid_t pid = MUST(fork());
    if (!pid) {
        int fd = open(path, O_WRONLY);
        _exit(fd < 0 || write(fd, "x", 1) != 1);
    }
    int status;
    EQUAL(MUST(waitpid(pid, &status, 0)), pid);
    EQUAL(status, 0);
    return pid;
}

/* Of every kind; what happens is told once. Something happens only as long as there is a file /act. */
static int gone;
static void set_files(void) {
    MUST(mkdir("/watched", 0755));
    close(make("/watched/file", "1", 0));
    close(make("/dev/shm/told", "1", 0));
    close(make("/dev/shm/not told", "1", 0));
    gone = make("/watched/gone", "", O_CLOEXEC);
    MUST(unlink("/watched/gone"));
    group = MUST(fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE, O_RDWR | O_APPEND));
    mark(0, FAN_MODIFY, "/watched/file");
    mark(FAN_MARK_ONLYDIR, FAN_CLOSE_WRITE | FAN_EVENT_ON_CHILD | FAN_ONDIR, "/watched");
    mark(FAN_MARK_MOUNT, FAN_MODIFY, "/dev/shm");
    mark(FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_MODIFY, "/dev/shm/not told");
    char name[32];
    snprintf(name, sizeof name, "/proc/self/fd/%d", gone);
    mark(EVICTABLE, FAN_MODIFY, name);
    shown(marks);
}
static void verify_files(void) {
    static char now[sizeof marks];
    shown(now);
    if (strcmp(now, marks)) bad("marks: %s", now);
    quiet();
    EQUAL(MUST(fcntl(group, F_GETFD)), FD_CLOEXEC);
    EQUAL(MUST(fcntl(group, F_GETFL)) & O_NONBLOCK, O_NONBLOCK);
    if (access("/act", F_OK)) return;
    pid_t child = writes("/watched/file");
    tells(FAN_MODIFY | FAN_CLOSE_WRITE, "/watched/file", child);
    child = writes("/dev/shm/told");
    tells(FAN_MODIFY, "/dev/shm/told", child);
    writes("/dev/shm/not told");
    EQUAL(MUST(pwrite(gone, "3", 1, 0)), 1);
    tells(FAN_MODIFY, "/watched/gone (deleted)", getpid());
    quiet();
}

/* All of a file system, told by names. */
static void set_names(void) {
    group = MUST(fanotify_init(FAN_CLASS_NOTIF | TELLS_NAMES | FAN_NONBLOCK, 0));
    mark(FAN_MARK_FILESYSTEM, FAN_CREATE | FAN_DELETE, "/dev/shm");
    shown(marks);
}
/* An event without a descriptor, in which this name stands. */
static void names(uint64_t events, const char *name, pid_t pid) {
    char got[4096];
    struct fanotify_event_metadata event;
    size_t held = (size_t)MUST(read(group, got, sizeof got));
    memcpy(&event, got, sizeof event);
    EQUAL(event.mask, events);
    EQUAL(event.pid, pid);
    EQUAL(event.event_len, held);
    CHECK(memmem(got, held, name, strlen(name) + 1));
}
static void verify_names(void) {
    static char now[sizeof marks];
    shown(now);
    if (strcmp(now, marks)) bad("marks: %s", now);
    quiet();
    if (access("/act", F_OK)) return;
    close(make("/dev/shm/new", "", 0));
    names(FAN_CREATE, "new", getpid());
    MUST(unlink("/dev/shm/new"));
    names(FAN_DELETE, "new", getpid());
    quiet();
}

/* Made without CAP_SYS_ADMIN: the ids of other processes are not told. */
static void set_unprivileged(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    MUST(syscall(SYS_capget, &header, sets));
    sets[0].permitted &= ~(1u << CAP_SYS_ADMIN);
    sets[0].effective &= ~(1u << CAP_SYS_ADMIN);
    sets[0].inheritable &= ~(1u << CAP_SYS_ADMIN);
    MUST(syscall(SYS_capset, &header, sets));
    FAILS(fanotify_init(FAN_CLASS_NOTIF, 0), EPERM);
    MUST(mkdir("/watched", 0755));
    close(make("/watched/file", "1", 0));
    group = MUST(fanotify_init(FAN_CLASS_NOTIF | TELLS_NAMES | FAN_NONBLOCK, 0));
    mark(0, FAN_MODIFY | FAN_EVENT_ON_CHILD, "/watched");
    shown(marks);
}
static void verify_unprivileged(void) {
    quiet();
    if (access("/act", F_OK)) return;
    writes("/watched/file");
    names(FAN_MODIFY, "file", 0);
    quiet();
}

/* Whoever opens something by the container's root mount; the guest itself does not. */
static void set_opens(void) {
    group = MUST(fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDWR | O_APPEND));
    mark(FAN_MARK_MOUNT, FAN_OPEN | FAN_CLOSE | FAN_ONDIR, "/");
    shown(marks);
}
static void verify_opens(void) {
    static char now[sizeof marks];
    shown(now);
    if (strcmp(now, marks)) bad("marks: %s", now);
    quiet();
}

static void set_unread(void) {
    set_files();
    writes("/watched/file");
}
static void verify_unread(void) {
    int bytes;
    MUST(ioctl(group, FIONREAD, &bytes));
    EQUAL(bytes, FAN_EVENT_METADATA_LEN);
}

/* Somebody must be asked; nobody else opens that file. */
static void set_asks(void) {
    close(make("/asked", "", 0));
    group = MUST(fanotify_init(FAN_CLASS_CONTENT | FAN_NONBLOCK, 0));
    mark(0, FAN_OPEN_PERM, "/asked");
}
static void verify_asks(void) { quiet(); }

int main(int argc, char **argv) {
    static const struct mode modes[] = {
        {"files", set_files, verify_files},
        {"names", set_names, verify_names},
        {"unprivileged", set_unprivileged, verify_unprivileged},
        {"opens", set_opens, verify_opens},
        {"unread", set_unread, verify_unread},
        {"asks", set_asks, verify_asks},
        {0},
    };
    return guest(argc, argv, modes);
}
