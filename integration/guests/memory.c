/* Memory: what is mapped where, with which content, shared with whom. */
#include "guest.h"
#include <linux/aio_abi.h>
#include <semaphore.h>
#include <sys/auxv.h>
#include <sys/ipc.h>
#include <sys/shm.h>

enum { PAGE = 4096, MIB = 1 << 20 };
static char *memory;
static size_t size;

/* The VmFlags of the mapping that begins at `at`. */
static const char *flags_of(const void *at) {
    static char all[1 << 18];
    char head[32];
    proc_into(all, sizeof all, "/proc/self/smaps");
    snprintf(head, sizeof head, "%08lx-", (unsigned long)at);
    char *entry = strstr(all, head);
    if (!entry) bad("no mapping begins at %s", head);
    char *flags = strstr(entry, "VmFlags:");
    CHECK(flags);
    flags[strcspn(flags, "\n")] = 0; /* each flag has a space behind it */
    return flags;
}
static void has_flag(const void *at, const char *flag) {
    char word[8];
    snprintf(word, sizeof word, " %s ", flag);
    const char *flags = flags_of(at);
    if (!strstr(flags, word)) bad("%s is not in %.150s", flag, flags);
}
static char *anonymous(size_t bytes) {
    return map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
}
/* The kernel reads `at` for us: what is not readable is an error and not a signal. */
static int readable(const void *at) {
    int fd = MUST(open("/dev/null", O_WRONLY)), pipes[2];
    MUST(pipe(pipes));
    ssize_t wrote = write(pipes[1], at, 1);
    int error = errno;
    close(fd), close(pipes[0]), close(pipes[1]);
    if (wrote < 0) errno = error;
    return wrote == 1;
}

static void set_private(void) {
    size = 8 * MIB;
    memory = anonymous(size);
    fill(memory, size, 1);
}
/* A turning page is written anew each time, and all are read. */
static void verify_private(void) {
    static unsigned turn;
    static uint64_t seeds[8 * MIB / PAGE];
    for (size_t i = turn % 64; i < size / PAGE; i += 64) {
        uint64_t seed = seeds[i] ? seeds[i] : 1 + i * PAGE / 8;
        CHECK(filled(memory + i * PAGE, PAGE, seed));
        seeds[i] = seed + 1;
        fill(memory + i * PAGE, PAGE, seeds[i]);
    }
    turn++;
}

enum { MANY = 600 };
static void set_many(void) {
    size = MANY * PAGE;
    memory = anonymous(size);
    fill(memory, size, 2);
    for (int i = 0; i < MANY; i++)
        MUST(mprotect(memory + i * PAGE, PAGE, i % 3 == 0 ? PROT_READ : i % 3 == 1 ? PROT_READ | PROT_WRITE : PROT_READ | PROT_EXEC));
}
static void verify_many(void) {
    CHECK(filled(memory, size, 2));
    int null = MUST(open("/dev/zero", O_RDONLY));
    char kept[64];
    for (int i = 0; i < MANY; i += 7) {
        memcpy(kept, memory + i * PAGE, sizeof kept);
        errno = 0;
        ssize_t got = read(null, memory + i * PAGE, sizeof kept);
        EQUAL(got, i % 3 == 1 ? (ssize_t)sizeof kept : -1);
        if (got > 0) memcpy(memory + i * PAGE, kept, sizeof kept);
        else EQUAL(errno, EFAULT);
    }
    close(null);
}

/* Shared by processes: what one writes, the other reads. */
static atomic_ulong *here, *there;
static void ping_pong(atomic_ulong *words) {
    here = words, there = words + PAGE / sizeof *words;
    fill((char *)words + 2 * PAGE, MIB, 3);
    if (MUST(fork())) return;
    for (;;) {
        atomic_store(there, atomic_load(here));
        CHECK(filled((char *)words + 2 * PAGE, MIB, 3));
        nap(500);
    }
}
static void verify_ping_pong(void) {
    atomic_fetch_add(here, 1);
    AWAIT(atomic_load(there) == atomic_load(here), "the other process does not see what this one writes");
    CHECK(filled((char *)here + 2 * PAGE, MIB, 3));
}
static void set_shared(void) { ping_pong(map(2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS)); }
/* The same pages twice in one process, at another offset in the other. */
static void set_shared_parts(void) {
    char *all = map(4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    memory = MUST(mremap(all, 0, 4 * MIB, MREMAP_MAYMOVE));
    CHECK(memory != all);
    MUST(munmap(all, MIB));
    ping_pong((atomic_ulong *)(all + MIB));
}
static void verify_shared_parts(void) {
    verify_ping_pong();
    EQUAL(*(atomic_ulong *)(memory + MIB), atomic_load(here));
}
static int file = -1;
static void set_memfd(void) {
    file = MUST(memfd_create("a memory", MFD_ALLOW_SEALING));
    MUST(ftruncate(file, 2 * MIB));
    MUST(fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    ping_pong(MUST(mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)));
}
static void verify_memfd(void) {
    uint64_t word;
    verify_ping_pong();
    EQUAL(MUST(pread(file, &word, 8, 0)), 8);
    EQUAL(word, atomic_load(here));
    EQUAL(MUST(fcntl(file, F_GET_SEALS)), F_SEAL_SHRINK | F_SEAL_GROW);
    FAILS(ftruncate(file, MIB), EPERM);
    char link[64] = "", path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    MUST(readlink(path, link, sizeof link - 1));
    if (strcmp(link, "/memfd:a memory (deleted)")) bad("the memfd is called %s", link);
}
static void set_memfd_sealed(void) {
    file = MUST(memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC));
    memory = anonymous(MIB);
    fill(memory, MIB, 4);
    EQUAL(MUST(write(file, memory, MIB)), MIB);
    MUST(munmap(memory, MIB));
    MUST(fcntl(file, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
    memory = MUST(mmap(NULL, MIB, PROT_READ, MAP_SHARED, file, 0));
    MUST(lseek(file, 4711, SEEK_SET));
}
static void verify_memfd_sealed(void) {
    CHECK(filled(memory, MIB, 4));
    FAILS(pwrite(file, "x", 1, 0), EPERM);
    FAILS(fcntl(file, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), EPERM);
    EQUAL(MUST(fcntl(file, F_GET_SEALS)), F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    EQUAL(MUST(lseek(file, 0, SEEK_CUR)), 4711);
    EQUAL(MUST(fcntl(file, F_GETFD)), FD_CLOEXEC);
}
/* More memfds than there are numbers in use: two processes have others by the same numbers. */
enum { MEMFDS = 40 };
static int child, memfds[MEMFDS];
static void verify_memfd_many(void) {
    for (uint64_t n = 0; n < MEMFDS; n++) {
        uint64_t word;
        EQUAL(MUST(pread(memfds[n], &word, 8, 0)), 8);
        EQUAL(word, n << 1 | child);
    }
    if (child) beat(0);
    else alive(0);
}
static void set_memfd_many(void) {
    share();
    child = !MUST(fork());
    for (uint64_t n = 0; n < MEMFDS; n++) {
        uint64_t word = n << 1 | child;
        memfds[n] = MUST(memfd_create(child ? "child" : "parent", 0));
        EQUAL(MUST(write(memfds[n], &word, 8)), 8);
        CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, memfds[n], 0) != MAP_FAILED);
    }
    while (child) verify_memfd_many();
}
/* A memfd of which only a private, changed mapping is left. */
static void set_memfd_private(void) {
    file = MUST(memfd_create("private", 0));
    MUST(ftruncate(file, 8 * PAGE));
    memory = MUST(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    fill(memory, 8 * PAGE, 5);
    MUST(munmap(memory, 8 * PAGE));
    memory = MUST(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
    fill(memory + 2 * PAGE, PAGE, 6);
    MUST(close(file));
}
static void verify_changed_page(void) {
    CHECK(filled(memory, 2 * PAGE, 5));
    CHECK(filled(memory + 2 * PAGE, PAGE, 6));
    CHECK(filled(memory + 3 * PAGE, 5 * PAGE, 5 + 3 * PAGE / 8));
}

static void set_prot_none(void) {
    size = MIB;
    memory = anonymous(size);
    fill(memory, size, 7);
    MUST(mprotect(memory, size, PROT_NONE));
}
static void verify_prot_none(void) {
    CHECK(!readable(memory));
    CHECK(!readable(memory + size - 1));
    static unsigned turn;
    char *page = memory + turn++ % (size / PAGE) * PAGE;
    MUST(mprotect(page, PAGE, PROT_READ));
    CHECK(filled(page, PAGE, 7 + (uint64_t)(page - memory) / 8));
    MUST(mprotect(page, PAGE, PROT_NONE));
}

/* A stack that grows when its lower end is touched. */
static size_t depth = 8;
static void set_grows_down(void) {
    char *room = map(64 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
    MUST(munmap(room, 64 * MIB));
    memory = room + 62 * MIB;
    CHECK(MUST(mmap(memory, PAGE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0)) == memory);
    for (size_t i = 0; i < depth; i++) fill(memory - i * PAGE, PAGE, i);
}
static void verify_grows_down(void) {
    static unsigned turn;
    for (size_t i = 0; i < depth; i++) CHECK(filled(memory - i * PAGE, PAGE, i));
    if (++turn % 16 == 0 && depth < 512) fill(memory - depth * PAGE, PAGE, depth), depth++;
}
/* The main stack, used deeply some time ago. */
static __attribute__((noinline)) void dig(int levels) {
    char here[4 * PAGE];
    fill(here, sizeof here, (uint64_t)levels);
    if (levels) dig(levels - 1);
    CHECK(filled(here, sizeof here, (uint64_t)levels));
}
static void set_stack(void) { dig(100); }
static void verify_stack(void) {
    dig(150);
    /* The mapping is the line that ends so. */
    const char *maps = proc("/proc/self/maps"), *at = strstr(maps, "[stack]");
    CHECK(at);
    while (at > maps && at[-1] != '\n') at--;
    has_flag((void *)strtoul(at, NULL, 16), "gd");
}

static void set_mlock(void) {
    size = 16 * PAGE;
    memory = anonymous(3 * size);
    MUST(mlock(memory, size));
    MUST(mlock2(memory + size, size, MLOCK_ONFAULT));
    memory[size] = 1;
    fill(memory, size, 8);
}
static void verify_mlock(void) {
    CHECK(filled(memory, size, 8));
    has_flag(memory, "lo");
    has_flag(memory + size, "lo");
    has_flag(memory + size, "lf");
    CHECK(!strstr(flags_of(memory + 2 * size), " lo "));
}
static void set_mlockall(void) {
    MUST(mlockall(MCL_FUTURE));
    memory = anonymous(PAGE);
}
static void verify_mlockall(void) {
    has_flag(memory, "lo");
    char *fresh = map(PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
    has_flag(fresh, "lo");
    MUST(munmap(fresh, PAGE));
}

static const struct { int advice; const char *flag; } advices[] = {
    {MADV_DONTFORK, "dc"}, {MADV_WIPEONFORK, "wf"}, {MADV_DONTDUMP, "dd"}, {MADV_HUGEPAGE, "hg"},
    {MADV_NOHUGEPAGE, "nh"}, {MADV_SEQUENTIAL, "sr"}, {MADV_RANDOM, "rr"}, {MADV_MERGEABLE, "mg"}};
enum { ADVICES = sizeof advices / sizeof *advices };
static int understood[ADVICES];
static char *advised(int i) { return memory + i * 2 * 8 * PAGE; }
static void set_madvise(void) {
    size = 2 * ADVICES * 8 * PAGE;
    memory = anonymous(size);
    fill(memory, size, 9);
    for (int i = 0; i < ADVICES; i++) {
        understood[i] = !madvise(advised(i), 8 * PAGE, advices[i].advice);
        CHECK(understood[i] || errno == EINVAL);
    }
    CHECK(understood[0] && understood[1] && understood[2]);
}
static void verify_madvise(void) {
    CHECK(filled(memory, size, 9));
    for (int i = 0; i < ADVICES; i++)
        if (understood[i]) has_flag(advised(i), advices[i].flag);
    pid_t pid = MUST(fork());
    if (!pid) _exit(readable(advised(0)) ? 1 : *(uint64_t *)advised(1) ? 2 : filled(advised(2), 8 * PAGE, 9 + 4 * 8 * PAGE / 8) ? 0 : 3);
    int status;
    MUST(waitpid(pid, &status, 0));
    EQUAL(status, 0);
}
static void set_huge(void) {
    char *room = anonymous(12 * MIB);
    memory = (char *)(((uintptr_t)room + 2 * MIB - 1) & ~(uintptr_t)(2 * MIB - 1));
    MUST(madvise(memory, 8 * MIB, MADV_HUGEPAGE));
    fill(memory, 8 * MIB, 10);
}
static void verify_huge(void) { CHECK(filled(memory, 8 * MIB, 10)); }

/* Pages of the pool of huge pages. */
static void set_hugetlb(void) {
    memory = map(2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB);
    fill(memory, 2 * MIB, 11);
    file = MUST(memfd_create("huge", MFD_HUGETLB));
    MUST(ftruncate(file, 2 * MIB));
    here = MUST(mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    fill((void *)here, 2 * MIB, 12);
}
static void verify_hugetlb(void) {
    CHECK(filled(memory, 2 * MIB, 11));
    CHECK(filled((void *)here, 2 * MIB, 12));
    has_flag(memory, "ht");
    has_flag((void *)here, "ht");
}

/* Pages that a parent and a child have in common until one of them writes. */
static void set_cow(void) {
    share();
    size = 16 * MIB;
    memory = anonymous(size);
    fill(memory, size, 13);
    if (MUST(fork())) return;
    fill(memory, MIB, 14);
    for (;;) {
        CHECK(filled(memory, MIB, 14));
        CHECK(filled(memory + MIB, size - MIB, 13 + MIB / 8));
        beat(0);
    }
}
static void verify_cow(void) {
    alive(0);
    CHECK(filled(memory, size, 13));
    fill(memory, 16 * PAGE, 13);
}

/* A huge reserve with little in it. */
enum { POINTS = 100 };
static void set_sparse(void) {
    size = (size_t)1 << 40;
    memory = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    for (size_t i = 0; i < POINTS; i++) fill(memory + size / POINTS / PAGE * PAGE * i, PAGE, i);
}
static void verify_sparse(void) {
    for (size_t i = 0; i < POINTS; i++) {
        char *at = memory + size / POINTS / PAGE * PAGE * i;
        CHECK(filled(at, PAGE, i));
        CHECK(!at[PAGE]);
    }
}
/* Pages that were written and are zero, and some that were only read. */
static void set_zero(void) {
    size = 64 * MIB;
    memory = anonymous(size);
    memset(memory, 0xff, size / 2);
    memset(memory, 0, size / 2);
}
static void verify_zero(void) {
    for (size_t i = 0; i < size; i += PAGE) EQUAL(memory[i + i / PAGE % PAGE], 0);
}

/* System V */
static int segment;
static void set_sysv(void) {
    segment = MUST(shmget(0x1234, 2 * MIB + 100, IPC_CREAT | IPC_EXCL | 0640));
    ping_pong(MUST(shmat(segment, NULL, 0)));
    memory = MUST(shmat(segment, NULL, SHM_RDONLY));
}
static void verify_sysv(void) {
    struct shmid_ds about;
    verify_ping_pong();
    EQUAL(*(atomic_ulong *)memory, atomic_load(here));
    EQUAL(MUST(shmget(0x1234, 0, 0)), segment);
    MUST(shmctl(segment, IPC_STAT, &about));
    EQUAL(about.shm_segsz, 2 * MIB + 100);
    EQUAL(about.shm_perm.mode & 0777, 0640);
    EQUAL(about.shm_nattch, 3);
    atomic_ulong *again = MUST(shmat(segment, NULL, 0));
    EQUAL(*again, atomic_load(here));
    MUST(shmdt(again));
}
static void set_sysv_removed(void) {
    segment = MUST(shmget(IPC_PRIVATE, 2 * MIB, 0600));
    ping_pong(MUST(shmat(segment, NULL, 0)));
    MUST(shmctl(segment, IPC_RMID, NULL));
}
/* Attached by nobody. */
static void set_sysv_alone(void) {
    segment = MUST(shmget(77, MIB, IPC_CREAT | 0600));
    memory = MUST(shmat(segment, NULL, 0));
    fill(memory, MIB, 15);
    MUST(shmdt(memory));
}
static void verify_sysv_alone(void) {
    EQUAL(MUST(shmget(77, 0, 0)), segment);
    memory = MUST(shmat(segment, NULL, 0));
    CHECK(filled(memory, MIB, 15));
    MUST(shmdt(memory));
}
/* POSIX */
static void set_posix(void) {
    file = MUST(shm_open("/shared", O_CREAT | O_RDWR, 0640));
    MUST(ftruncate(file, 2 * MIB));
    ping_pong(MUST(mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)));
    MUST(close(file));
}
static void verify_posix(void) {
    verify_ping_pong();
    file = MUST(shm_open("/shared", O_RDONLY, 0));
    atomic_ulong *again = MUST(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file, 0));
    EQUAL(*again, atomic_load(here));
    MUST(munmap(again, PAGE));
    MUST(close(file));
}
static void set_posix_unlinked(void) {
    set_posix();
    MUST(shm_unlink("/shared"));
}

/* POSIX semaphores are mapped files, made under a passing name. Each side has opened them by themselves. */
static sem_t *question, *reply;
static sem_t *semaphore(const char *name, int flags) {
    sem_t *opened = sem_open(name, flags, 0600, 0);
    if (opened == SEM_FAILED) bad("sem_open %s: %s", name, strerror(errno));
    return opened;
}
static void wait_for(sem_t *semaphore) {
    struct timespec end;
    MUST(clock_gettime(CLOCK_MONOTONIC, &end));
    end.tv_sec += 15;
    while (sem_clockwait(semaphore, CLOCK_MONOTONIC, &end))
        if (errno != EINTR) bad("wait for a semaphore: %s", strerror(errno));
}
static void set_posix_semaphores(void) {
    question = semaphore("/asked", O_CREAT), reply = semaphore("/told", O_CREAT);
    if (MUST(fork())) {
        wait_for(reply);
        return;
    }
    /* Else it would be given the mappings that it has inherited. */
    MUST(sem_close(question));
    MUST(sem_close(reply));
    question = semaphore("/asked", 0), reply = semaphore("/told", 0);
    for (;;) {
        MUST(sem_post(reply));
        MUST(sem_wait(question));
    }
}
static void verify_posix_semaphores(void) {
    MUST(sem_post(question));
    wait_for(reply);
    FAILS(sem_trywait(reply), EAGAIN);
}
static void verify_posix_semaphores_named(void) {
    verify_posix_semaphores();
    sem_t *again = semaphore("/told", 0);
    FAILS(sem_trywait(again), EAGAIN);
    MUST(sem_post(reply));
    wait_for(again);
    MUST(sem_close(again));
}
static void set_posix_semaphores_unlinked(void) {
    set_posix_semaphores();
    MUST(sem_unlink("/asked"));
    MUST(sem_unlink("/told"));
}

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
static void set_guard(void) {
    memory = anonymous(16 * PAGE);
    fill(memory, 16 * PAGE, 16);
    MUST(madvise(memory + 4 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL));
}
static void verify_guard(void) {
    CHECK(filled(memory, 4 * PAGE, 16));
    CHECK(!readable(memory + 4 * PAGE));
    CHECK(!readable(memory + 6 * PAGE - 1));
    CHECK(filled(memory + 6 * PAGE, 10 * PAGE, 16 + 6 * PAGE / 8));
}
static void set_mseal(void) {
    memory = anonymous(4 * PAGE);
    fill(memory, 4 * PAGE, 17);
    MUST(syscall(462, memory, 2 * PAGE, 0));
}
static void verify_mseal(void) {
    CHECK(filled(memory, 4 * PAGE, 17));
    FAILS(munmap(memory, PAGE), EPERM);
    FAILS(mprotect(memory + PAGE, PAGE, PROT_READ), EPERM);
    MUST(mprotect(memory + 2 * PAGE, PAGE, PROT_READ));
}

/* Files in memory */
static void set_file(void) {
    file = make("/tmp/mapped", "", O_CLOEXEC);
    memory = anonymous(8 * PAGE);
    fill(memory, 8 * PAGE, 5);
    EQUAL(MUST(write(file, memory, 8 * PAGE)), 8 * PAGE);
    MUST(munmap(memory, 8 * PAGE));
}
static void set_file_private(void) {
    set_file();
    memory = MUST(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
    fill(memory + 2 * PAGE, PAGE, 6);
}
static void set_file_read_only(void) {
    set_file_private();
    MUST(close(file));
    MUST(mprotect(memory, 8 * PAGE, PROT_READ));
}
static void set_file_deleted(void) {
    set_file_private();
    MUST(unlink("/tmp/mapped"));
    MUST(close(file));
}
static void set_file_shared(void) {
    set_file();
    here = MUST(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    atomic_store(here, 0);
}
static void verify_file_shared(void) {
    uint64_t word, wanted = atomic_fetch_add(here, 1) + 1;
    EQUAL(MUST(pread(file, &word, 8, 0)), 8);
    EQUAL(word, wanted);
    word++;
    EQUAL(MUST(pwrite(file, &word, 8, 0)), 8);
    EQUAL(atomic_load(here), word);
    CHECK(filled((char *)here + PAGE, 7 * PAGE, 5 + PAGE / 8));
}
static void set_file_shared_deleted(void) {
    set_file_shared();
    MUST(unlink("/tmp/mapped"));
}
/* Never had a name, and can get one, but only once. */
static void set_file_shared_nameless(void) {
    file = MUST(open("/tmp", O_TMPFILE | O_RDWR, 0600));
    MUST(ftruncate(file, 8 * PAGE));
    here = MUST(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    fill((char *)here, 8 * PAGE, 5);
    atomic_store(here, 0);
}
static void verify_file_shared_nameless(void) {
    struct stat about;
    char path[32];
    verify_file_shared();
    MUST(fstat(file, &about));
    EQUAL(about.st_nlink, 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    MUST(linkat(AT_FDCWD, path, AT_FDCWD, "/tmp/linked", AT_SYMLINK_FOLLOW));
    MUST(unlink("/tmp/linked"));
    MUST(munmap(here, 8 * PAGE));
    MUST(close(file));
    set_file_shared_nameless();
}

/* The program's own areas */
extern char **environ;
static char *heap;
static int named;
static void set_program(void) {
    memory = MUST((char *)sbrk(3 * MIB));
    fill(memory, 3 * MIB, 18);
    heap = MUST((char *)sbrk(0));
    setenv("LATE", "yes", 1);
    /* Not every kernel is built with names. */
    named = !prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, anonymous(5 * PAGE), 5 * PAGE, "a name");
}
static void verify_program(void) {
    CHECK(filled(memory, 3 * MIB, 18));
    CHECK(sbrk(0) == heap);
    MUST(sbrk(PAGE));
    heap[PAGE - 1] = 1;
    MUST(sbrk(-PAGE));
    CHECK(!strncmp((char *)getauxval(AT_EXECFN), "/guest", 6));
    EQUAL(getauxval(AT_PAGESZ), PAGE);
    CHECK(getauxval(AT_SYSINFO_EHDR));
    CHECK(!strcmp(getenv("LATE"), "yes"));
    CHECK(getenv("PATH"));
    CHECK(!strcmp(proc("/proc/self/cmdline"), "/guest"));
    CHECK(strstr(proc("/proc/self/environ"), "PATH="));
    const char *maps = proc("/proc/self/maps");
    CHECK(strstr(maps, "[heap]"));
    CHECK(strstr(maps, "[stack]"));
    CHECK(strstr(maps, "[vdso]"));
    CHECK(!named || strstr(maps, "[anon:a name]"));
    char exe[64] = "";
    MUST(readlink("/proc/self/exe", exe, sizeof exe - 1));
    CHECK(!strcmp(exe, "/guest"));
}
/* Code that was made when the program ran: int f(void) { return 42; } */
static void set_code(void) {
    memory = map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS);
    memcpy(memory, "\xb8\x2a\0\0\0\xc3", 6);
    MUST(mprotect(memory, PAGE, PROT_READ | PROT_EXEC));
}
static void verify_code(void) { EQUAL(((int (*)(void))memory)(), 42); }
/* Memory that comes and goes all the time. */
static void verify_changes(void) {
    for (int i = 1; i < 40; i++) {
        char *some = anonymous((size_t)i * PAGE);
        fill(some, (size_t)i * PAGE, (uint64_t)i);
        some = MUST(mremap(some, (size_t)i * PAGE, (size_t)(i + 20) * PAGE, MREMAP_MAYMOVE));
        CHECK(filled(some, (size_t)i * PAGE, (uint64_t)i));
        CHECK(!some[i * PAGE]);
        MUST(madvise(some, PAGE, MADV_DONTNEED));
        CHECK(!some[0]);
        MUST(munmap(some, (size_t)(i + 20) * PAGE));
    }
}
static void set_nothing(void) {}

/* Asynchronous I/O: two contexts, with answers that wait, of which the oldest is taken again and again. */
static aio_context_t contexts[2];
static int written;
static uint64_t asked, answered;
static void ask(aio_context_t context) {
    struct iocb request = {.aio_data = ++asked, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = (uint32_t)written,
                           .aio_buf = (uint64_t)"x", .aio_nbytes = 1}, *list = &request;
    EQUAL(MUST(syscall(SYS_io_submit, context, 1, &list)), 1);
}
static void answer(aio_context_t context) {
    struct io_event event;
    EQUAL(MUST(syscall(SYS_io_getevents, context, 1, 1, &event, NULL)), 1);
    EQUAL(event.data, ++answered);
    EQUAL(event.res, 1);
}
static void set_aio(void) {
    written = MUST(open("/written", O_CREAT | O_RDWR, 0600));
    MUST(syscall(SYS_io_setup, 500, &contexts[0]));
    MUST(syscall(SYS_io_setup, 1, &contexts[1]));
    for (int i = 0; i < 3000; i++) {
        ask(contexts[0]);
        if (i >= 100) answer(contexts[0]);
    }
}
static void verify_aio(void) {
    static uint64_t counted;
    struct io_event event;
    struct timespec none = {0};
    ask(contexts[0]);
    answer(contexts[0]);
    EQUAL(asked - answered, 100);
    EQUAL(MUST(syscall(SYS_io_getevents, contexts[1], 0, 1, &event, &none)), 0);
    struct iocb request = {.aio_data = ++counted, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)written,
                           .aio_buf = (uint64_t)&none, .aio_nbytes = 1}, *list = &request;
    EQUAL(MUST(syscall(SYS_io_submit, contexts[1], 1, &list)), 1);
    EQUAL(MUST(syscall(SYS_io_getevents, contexts[1], 1, 1, &event, NULL)), 1);
    EQUAL(event.data, counted);
}

/* A process that has thrown its vDSO away. */
static void unmap_vdso(const char *also) {
    share();
    if (MUST(fork())) return;
    char *line = strdup(proc("/proc/self/maps")), *end;
    for (line = strtok(line, "\n"); line; line = strtok(NULL, "\n")) {
        if (!strstr(line, "[vdso]") && !(also && strstr(line, also))) continue;
        unsigned long from = strtoul(line, &end, 16), to = strtoul(end + 1, NULL, 16);
        MUST(syscall(SYS_munmap, from, to - from));
    }
    for (;;) beat(0);
}
static void set_without_vdso(void) { unmap_vdso("[vvar"); }
/* valgrind leaves the data. */
static void set_without_vdso_code(void) { unmap_vdso(NULL); }
static void verify_without_vdso(void) { alive(0); }

static const struct mode modes[] = {
    {"aio", set_aio, verify_aio},
    {"without-vdso", set_without_vdso, verify_without_vdso},
    {"without-vdso-code", set_without_vdso_code, verify_without_vdso},
    {"private", set_private, verify_private},
    {"many-mappings", set_many, verify_many},
    {"shared", set_shared, verify_ping_pong},
    {"shared-parts", set_shared_parts, verify_shared_parts},
    {"memfd", set_memfd, verify_memfd},
    {"memfd-sealed", set_memfd_sealed, verify_memfd_sealed},
    {"memfd-many", set_memfd_many, verify_memfd_many},
    {"memfd-private", set_memfd_private, verify_changed_page},
    {"prot-none", set_prot_none, verify_prot_none},
    {"grows-down", set_grows_down, verify_grows_down},
    {"stack", set_stack, verify_stack},
    {"mlock", set_mlock, verify_mlock},
    {"mlockall", set_mlockall, verify_mlockall},
    {"madvise", set_madvise, verify_madvise},
    {"huge", set_huge, verify_huge},
    {"hugetlb", set_hugetlb, verify_hugetlb},
    {"copy-on-write", set_cow, verify_cow},
    {"sparse", set_sparse, verify_sparse},
    {"zero", set_zero, verify_zero},
    {"sysv", set_sysv, verify_sysv},
    {"sysv-removed", set_sysv_removed, verify_ping_pong},
    {"sysv-alone", set_sysv_alone, verify_sysv_alone},
    {"posix", set_posix, verify_posix},
    {"posix-unlinked", set_posix_unlinked, verify_ping_pong},
    {"posix-semaphores", set_posix_semaphores, verify_posix_semaphores_named},
    {"posix-semaphores-unlinked", set_posix_semaphores_unlinked, verify_posix_semaphores},
    {"guard", set_guard, verify_guard},
    {"mseal", set_mseal, verify_mseal},
    {"file-private", set_file_private, verify_changed_page},
    {"file-read-only", set_file_read_only, verify_changed_page},
    {"file-deleted", set_file_deleted, verify_changed_page},
    {"file-shared", set_file_shared, verify_file_shared},
    {"file-shared-deleted", set_file_shared_deleted, verify_file_shared},
    {"file-shared-nameless", set_file_shared_nameless, verify_file_shared_nameless},
    {"program", set_program, verify_program},
    {"code", set_code, verify_code},
    {"changes", set_nothing, verify_changes},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
