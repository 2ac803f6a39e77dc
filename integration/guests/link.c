/* A job that is tied to an emulator by a device. The emulator is the test: to a line "N" it answers "3N+1". The link keeps
 * nothing while nobody is at its other end, so a question that got no answer is asked again. */
#include "guest.h"
#include <poll.h>
#include <sys/epoll.h>

static int device = -1, again = -1, epoll = -1, to_child[2], from_child[2];
static unsigned long asked;

static int answered(int fd, int wait_on) {
    struct pollfd ready = {.fd = wait_on, .events = POLLIN};
    if (MUST(poll(&ready, 1, 300)) == 0) return 0;
    char line[64];
    ssize_t length = 0;
    for (;;) {
        ssize_t got = read(fd, line + length, 1);
        if (got < 0 && errno == EAGAIN) {
            ready.fd = fd;
            if (poll(&ready, 1, 300) <= 0) return 0;
            continue;
        }
        CHECK(got == 1);
        if (line[length] == '\n') break;
        length++;
        CHECK(length < (ssize_t)sizeof line - 1);
    }
    line[length] = 0;
    unsigned long answer = strtoul(line, NULL, 10);
    /* An answer to the same question, asked before. */
    return answer == 3 * asked + 1;
}

static void ask(int fd, int wait_on) {
    char line[32];
    asked++;
    int length = snprintf(line, sizeof line, "%lu\n", asked);
    for (int tries = 0; tries < 300; tries++) {
        EQUAL(write(fd, line, (size_t)length), length);
        if (answered(fd, wait_on)) return;
    }
    bad("the emulator does not answer");
}

static void ask_device(void) { ask(device, device); }

/* A child asks by what it has inherited, when it is told to. */
static void make_child(void (*question)(void)) {
    MUST(pipe(to_child));
    MUST(pipe(from_child));
    if (MUST(fork())) return;
    char go;
    asked = 1000000;
    while (read(to_child[0], &go, 1) == 1) {
        question();
        EQUAL(write(from_child[1], "", 1), 1);
    }
    _exit(0);
}
static void child_asks(void) {
    char done;
    EQUAL(write(to_child[1], "", 1), 1);
    EQUAL(read(from_child[0], &done, 1), 1);
}

static void set_device(void) {
    device = MUST(open("/dev/emu0", O_RDWR | O_NOCTTY | O_NONBLOCK));
    again = MUST(dup(device));
    epoll = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, device, &event));
    make_child(ask_device);
}

/* The numbers of the device that is open, and of the one at a path. */
static dev_t held(void) {
    struct stat about;
    MUST(fstat(device, &about));
    return about.st_rdev;
}
static dev_t there(const char *path) {
    struct stat about;
    MUST(stat(path, &about));
    return about.st_rdev;
}
static void verify_device(void) {
    ask_device();
    ask(again, device);
    ask(device, epoll);
    child_asks();
    EQUAL(fcntl(device, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR | O_NONBLOCK);
    /* What it opens now is what it has open. */
    AGREE(held(), there("/dev/emu0"));
}

/* A node that a vendor describes: what it leads to is another one on each host, and is what the path leads to. */
static void set_node(void) { device = MUST(open("/dev/emu0-reset", O_RDWR)); }
static void verify_node(void) { AGREE(held(), there("/dev/emu0-reset")); }

/* A ring in memory that the emulator shares: the question in the first word, its answer in the second. */
static _Atomic uint64_t *ring;

static void ask_ring(void) {
    uint64_t question = ++asked;
    for (int tries = 0; tries < 300; tries++) {
        atomic_store(&ring[0], question);
        for (int naps = 0; naps < 300; naps++) {
            if (atomic_load(&ring[1]) == 3 * question + 1) return;
            nap(1000);
        }
    }
    bad("the emulator does not answer");
}
static void set_ring(void) {
    device = MUST(open("/dev/emu/ring0", O_RDWR));
    ring = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
    CHECK(ring != MAP_FAILED);
    make_child(ask_ring);
}
static void verify_ring(void) {
    uint64_t word;
    ask_ring();
    /* The descriptor and the mapping are of one file. */
    EQUAL(pread(device, &word, sizeof word, 8), (ssize_t)sizeof word);
    EQUAL(word, 3 * asked + 1);
    child_asks();
}

static struct mode modes[] = {
    {"ring", set_ring, verify_ring},
    {"device", set_device, verify_device},
    {"node", set_node, verify_node},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
