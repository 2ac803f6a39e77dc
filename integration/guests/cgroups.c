/* Cgroups that a job makes below its container's own. */
#include "guest.h"
#include <dirent.h>
#include <poll.h>
#include <pthread.h>

/* Where a hierarchy is mounted: "" is cgroup2, which is alone on some hosts. */
static const char *at(const char *hierarchy, const char *path) {
    static char texts[8][512];
    static int turn;
    char *text = texts[turn++ % 8];
    struct stat about;
    if (*hierarchy)
        snprintf(text, 512, "/sys/fs/cgroup/%s/%s", hierarchy, path);
    else if (!stat("/sys/fs/cgroup/unified", &about))
        snprintf(text, 512, "/sys/fs/cgroup/unified/%s", path);
    else
        snprintf(text, 512, "/sys/fs/cgroup/%s", path);
    return text;
}
static int is_mounted(const char *hierarchy) { return !access(at(hierarchy, "."), F_OK); }
static void begin(const char *hierarchy, const char *path) { MUST(mkdir(at(hierarchy, path), 0755)); }
static void put(const char *hierarchy, const char *path, const char *value) {
    const char *file = at(hierarchy, path);
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, value, strlen(value)) < 0) bad("%s to %s: %s", value, file, strerror(errno));
    close(fd);
}
static const char *get(const char *hierarchy, const char *path) {
    char *text = (char *)proc(at(hierarchy, path));
    size_t length = strlen(text);
    while (length && text[length - 1] == '\n') text[--length] = 0;
    return text;
}
static void is(const char *hierarchy, const char *path, const char *value) {
    const char *found = get(hierarchy, path);
    if (strcmp(found, value)) bad("%s of %s is \"%s\", not \"%s\"", path, *hierarchy ? hierarchy : "cgroup2", found, value);
}
/* Some kernels have a number for it, also on cgroup2. */
static void is_unlimited(const char *hierarchy, const char *path) {
    const char *found = get(hierarchy, path);
    if (strcmp(found, "max") && strtoull(found, NULL, 10) < 1ull << 62) bad("%s is %s", path, found);
}
static void number_to(const char *hierarchy, const char *path, int number) {
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    put(hierarchy, path, text);
}
/* A thread is in a cgroup, by what the kernel says of the thread. */
static void in(int tid, const char *hierarchy, const char *path) {
    char file[64], line[512];
    snprintf(file, sizeof file, "/proc/%d/cgroup", tid);
    snprintf(line, sizeof line, "%s:%s\n", *hierarchy ? hierarchy : "0:", path);
    const char *text = proc(file);
    /* 3:cpu:/path, 2:name=systemd:/path, 0::/path */
    char *found = strstr(text, line);
    if (!found) bad("%d is not in %s of %s: %.150s", tid, path, hierarchy, text);
}
static int thread_id;
static void *beats(void *heart) {
    atomic_store(&shared->numbers[(long)heart], gettid());
    for (;;) beat((int)(long)heart);
    return NULL;
}
static int thread(int heart) {
    pthread_t id;
    MUST(-pthread_create(&id, NULL, beats, (void *)(long)heart));
    return number(heart);
}
static pid_t child(int heart) {
    pid_t pid = MUST(fork());
    if (!pid)
        for (;;) beat(heart);
    return pid;
}
/* A heart that must stand still. */
static void still(int heart) {
    unsigned long beats = atomic_load(&shared->beats[heart]);
    nap(3000);
    EQUAL(atomic_load(&shared->beats[heart]), beats);
}
static int entries(const char *hierarchy, const char *path) {
    DIR *dir = opendir(at(hierarchy, path));
    if (!dir) bad("%s: %s", path, strerror(errno));
    int found = 0;
    for (struct dirent *entry; (entry = readdir(dir));) found += entry->d_type == DT_DIR && entry->d_name[0] != '.';
    closedir(dir);
    return found;
}

static pid_t worker, cold, grandchild;

/* Every hierarchy of v1 that there is, each with settings of its kind. */
static void set_v1(void) {
    share();
    worker = child(0);
    thread_id = thread(1);
    if (is_mounted("cpu")) {
        begin("cpu", "job");
        begin("cpu", "job/deep er");
        put("cpu", "job/cpu.shares", "512");
        put("cpu", "job/cpu.cfs_period_us", "50000");
        put("cpu", "job/cpu.cfs_quota_us", "45000");
        put("cpu", "job/deep er/cpu.cfs_quota_us", "80000");
        put("cpu", "job/deep er/notify_on_release", "1");
        number_to("cpu", "job/deep er/cgroup.procs", worker);
        number_to("cpu", "job/tasks", thread_id);
    }
    if (is_mounted("memory")) {
        begin("memory", "job");
        put("memory", "job/memory.limit_in_bytes", "67108864");
        if (!access(at("memory", "job/memory.memsw.limit_in_bytes"), F_OK))
            put("memory", "job/memory.memsw.limit_in_bytes", "100663296");
        put("memory", "job/memory.soft_limit_in_bytes", "33554432");
        put("memory", "job/memory.swappiness", "17");
        put("memory", "job/memory.oom_control", "1");
        number_to("memory", "job/cgroup.procs", worker);
    }
    if (is_mounted("pids")) {
        begin("pids", "job");
        put("pids", "job/pids.max", "20");
        number_to("pids", "job/cgroup.procs", worker);
        begin("pids", "job/none");
        put("pids", "job/none/pids.max", "0");
        MUST(chown(at("pids", "job/none"), 1000, 1001));
        MUST(chown(at("pids", "job/none/cgroup.procs"), 1000, 0));
        MUST(chmod(at("pids", "job/none"), 0750));
    }
    if (is_mounted("cpuset")) {
        begin("cpuset", "job");
        put("cpuset", "job/cpuset.cpus", "0");
        put("cpuset", "job/cpuset.mems", "0");
        put("cpuset", "job/cpuset.memory_spread_page", "1");
        begin("cpuset", "unready");
        number_to("cpuset", "job/cgroup.procs", worker);
    }
    if (is_mounted("devices")) {
        begin("devices", "job");
        put("devices", "job/devices.deny", "c 1:5 rwm");
        number_to("devices", "job/cgroup.procs", worker);
    }
    if (is_mounted("systemd")) begin("systemd", "nobody");
}
static void verify_v1(void) {
    all_alive(2);
    if (is_mounted("cpu")) {
        is("cpu", "job/cpu.shares", "512");
        is("cpu", "job/cpu.cfs_period_us", "50000");
        is("cpu", "job/cpu.cfs_quota_us", "45000");
        is("cpu", "job/deep er/cpu.shares", "1024");
        is("cpu", "job/deep er/cpu.cfs_quota_us", "80000");
        is("cpu", "job/deep er/notify_on_release", "1");
        is("cpu", "job/notify_on_release", "0");
        in(worker, "cpu", "/job/deep er");
        in(thread_id, "cpu", "/job");
        in(1, "cpu", "/");
    }
    if (is_mounted("memory")) {
        is("memory", "job/memory.limit_in_bytes", "67108864");
        if (!access(at("memory", "job/memory.memsw.limit_in_bytes"), F_OK))
            is("memory", "job/memory.memsw.limit_in_bytes", "100663296");
        is("memory", "job/memory.soft_limit_in_bytes", "33554432");
        is("memory", "job/memory.swappiness", "17");
        CHECK(strstr(get("memory", "job/memory.oom_control"), "oom_kill_disable 1"));
        in(worker, "memory", "/job");
        in(1, "memory", "/");
    }
    if (is_mounted("pids")) {
        is("pids", "job/pids.max", "20");
        in(worker, "pids", "/job");
        is("pids", "job/none/pids.max", "0");
        struct stat about;
        MUST(stat(at("pids", "job/none"), &about));
        EQUAL(about.st_uid, 1000);
        EQUAL(about.st_gid, 1001);
        EQUAL(about.st_mode & 07777, 0750);
        MUST(stat(at("pids", "job/none/cgroup.procs"), &about));
        EQUAL(about.st_uid, 1000);
        EQUAL(about.st_gid, 0);
        MUST(stat(at("pids", "job/none/pids.max"), &about));
        EQUAL(about.st_uid, 0);
    }
    if (is_mounted("cpuset")) {
        is("cpuset", "job/cpuset.cpus", "0");
        is("cpuset", "job/cpuset.memory_spread_page", "1");
        is("cpuset", "unready/cpuset.cpus", "");
        in(worker, "cpuset", "/job");
    }
    if (is_mounted("devices")) {
        CHECK(!strstr(get("devices", "job/devices.list"), "c 1:5 "));
        CHECK(strstr(get("devices", "devices.list"), "c 1:5 "));
        in(worker, "devices", "/job");
    }
    if (is_mounted("systemd")) {
        EQUAL(entries("systemd", "."), 1);
        EQUAL(entries("systemd", "nobody"), 0);
    }
}

/* cgroup2: processes in leaves, controllers handed on, limits; somebody else's; an empty one. */
static void set_v2(void) {
    share();
    begin("", "main");
    begin("", "work");
    begin("", "work/leaf");
    begin("", "work/empty");
    worker = child(0);
    grandchild = child(1);
    put("", "main/cgroup.procs", "1");
    number_to("", "work/leaf/cgroup.procs", worker);
    number_to("", "main/cgroup.procs", grandchild);
    put("", "work/cgroup.max.depth", "3");
    put("", "work/cgroup.max.descendants", "7");
    if (strstr(get("", "cgroup.controllers"), "hugetlb")) {
        put("", "cgroup.subtree_control", "+hugetlb");
        put("", "work/hugetlb.2MB.max", "4194304");
        put("", "work/cgroup.subtree_control", "+hugetlb");
        put("", "work/leaf/hugetlb.2MB.rsvd.max", "2097152");
    }
    MUST(chown(at("", "work/empty"), 1000, 1000));
    MUST(chown(at("", "work/empty/cgroup.procs"), 1000, 1000));
}
static void verify_v2(void) {
    all_alive(2);
    in(1, "", "/main");
    in(worker, "", "/work/leaf");
    in(grandchild, "", "/main");
    is("", "work/cgroup.max.depth", "3");
    is("", "work/cgroup.max.descendants", "7");
    is("", "main/cgroup.max.depth", "max");
    if (strstr(get("", "cgroup.controllers"), "hugetlb")) {
        is("", "cgroup.subtree_control", "hugetlb");
        is("", "work/cgroup.subtree_control", "hugetlb");
        is("", "main/cgroup.subtree_control", "");
        is("", "work/hugetlb.2MB.max", "4194304");
        is("", "work/leaf/hugetlb.2MB.rsvd.max", "2097152");
        is_unlimited("", "work/leaf/hugetlb.2MB.max");
    }
    struct stat about;
    MUST(stat(at("", "work/empty"), &about));
    EQUAL(about.st_uid, 1000);
    MUST(stat(at("", "work/empty/cgroup.procs"), &about));
    EQUAL(about.st_uid, 1000);
    MUST(stat(at("", "work/empty/cgroup.max.depth"), &about));
    EQUAL(about.st_uid, 0);
    EQUAL(entries("", "work"), 2);
}

/* Threads of one process in cgroups of their own. */
static int second, third;
static void set_threaded(void) {
    share();
    second = thread(0);
    third = thread(1);
    worker = child(2);
    begin("", "main");
    put("", "main/cgroup.procs", "1");
    begin("", "main/one");
    begin("", "main/two");
    begin("", "main/two/deep");
    put("", "main/one/cgroup.type", "threaded");
    put("", "main/two/cgroup.type", "threaded");
    put("", "main/two/deep/cgroup.type", "threaded");
    number_to("", "main/one/cgroup.threads", second);
    number_to("", "main/two/deep/cgroup.threads", third);
}
static void verify_threaded(void) {
    all_alive(3);
    is("", "main/cgroup.type", "domain threaded");
    is("", "main/one/cgroup.type", "threaded");
    is("", "main/two/deep/cgroup.type", "threaded");
    in(1, "", "/main");
    in(second, "", "/main/one");
    in(third, "", "/main/two/deep");
    in(worker, "", "/");
}

/* A part of the job that stands still. */
static void set_frozen(const char *hierarchy, const char *file, const char *value) {
    share();
    begin(hierarchy, "cold");
    cold = child(0);
    worker = child(1);
    number_to(hierarchy, "cold/cgroup.procs", cold);
    alive(0);
    put(hierarchy, file, value);
}
static void set_frozen_v2(void) {
    set_frozen("", "cold/cgroup.freeze", "1");
    while (!strstr(get("", "cold/cgroup.events"), "frozen 1")) nap(500);
}
static void verify_frozen_v2(void) {
    while (!strstr(get("", "cold/cgroup.events"), "frozen 1")) nap(500);
    is("", "cold/cgroup.freeze", "1");
    in(cold, "", "/cold");
    alive(1);
    still(0);
}
static void set_frozen_v1(void) {
    if (!is_mounted("freezer")) return set_frozen_v2();
    set_frozen("freezer", "cold/freezer.state", "FROZEN");
    while (strcmp(get("freezer", "cold/freezer.state"), "FROZEN")) nap(500);
}
static void verify_frozen_v1(void) {
    if (!is_mounted("freezer")) return verify_frozen_v2();
    while (strcmp(get("freezer", "cold/freezer.state"), "FROZEN")) nap(500);
    in(cold, "freezer", "/cold");
    alive(1);
    still(0);
}

/* Open directories and files; the events of a cgroup are told by poll. */
static int dir, procs, events;
static void set_open(void) {
    share();
    begin("", "watched");
    dir = MUST(open(at("", "watched"), O_RDONLY | O_DIRECTORY));
    procs = MUST(open(at("", "watched/cgroup.procs"), O_RDWR | O_CLOEXEC));
    events = MUST(open(at("", "watched/cgroup.events"), O_RDONLY));
    MUST(fchdir(dir));
}
static void populated(int wanted) {
    char text[128] = "";
    for (int tries = 0; tries < 100; tries++) {
        MUST(pread(events, text, sizeof text - 1, 0));
        if ((int)field(text, "populated ", 10) == wanted) return;
        struct pollfd change = {.fd = events, .events = POLLPRI};
        MUST(poll(&change, 1, 1000));
    }
    bad("populated is not %d: %s", wanted, text);
}
static void verify_open(void) {
    populated(0);
    pid_t pid = MUST(fork());
    if (!pid) {
        if (write(procs, "0", 1) != 1) bad("enter: %s", strerror(errno));
        for (;;) pause();
    }
    populated(1);
    MUST(kill(pid, SIGKILL));
    EQUAL(MUST(waitpid(pid, NULL, 0)), pid);
    AGREE(inode(dir), inode_at(at("", "watched")));
    AGREE(inode(dir), inode_at("."));
    MUST(faccessat(dir, "cgroup.procs", F_OK, 0));
}

static const struct mode modes[] = {
    {"v1", set_v1, verify_v1},
    {"v2", set_v2, verify_v2},
    {"threaded", set_threaded, verify_threaded},
    {"frozen-v2", set_frozen_v2, verify_frozen_v2},
    {"frozen-v1", set_frozen_v1, verify_frozen_v1},
    {"open", set_open, verify_open},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
