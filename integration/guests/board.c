/* A board in software, and the job that is tied to it.
 *
 * `board serve DIRECTORY` mounts a FUSE file system with a device in it, board0: a file that can be mapped, polled, and asked
 * things by ioctl. To N it answers 3N+1. In the mapping the question is in the first word and the answer in the second. A
 * session is a handle: each board has numbers of its own for them. How often what was asked of it is in the file `counts`, and
 * the third word of its memory.
 *
 * The modes are the job's; its boards are at /dev/board0, or in /dev/boards. */
#include "guest.h"
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

struct question {
    uint32_t session, unused;
    uint64_t asked, answer;
};
#define SCALE _IOWR('B', 1, uint64_t)
#define OPEN _IOR('B', 2, uint32_t)
#define ASK _IOWR('B', 3, struct question)
#define RAISE _IO('B', 4)
#define CLEAR _IO('B', 5)

enum { MEMORY = 8192, PAGE = 4096, BUFFER = MEMORY + PAGE };

/* The board. */

enum { ROOT = FUSE_ROOT_ID, BOARD, COUNTS };
static const char *const names[] = {[BOARD] = "board0", [COUNTS] = "counts"};
static int fuse = -1, stale[2];
static _Alignas(8) unsigned char memory[MEMORY];
static uint32_t first_session, sessions;
static uint64_t poller;
static int raised, waits;
static unsigned long scaled, answered, written, polled;

static void reply(uint64_t unique, int error, const void *body, size_t length) {
    char message[sizeof(struct fuse_out_header) + BUFFER];
    struct fuse_out_header head = {.len = sizeof head + (uint32_t)length, .error = -error, .unique = unique};
    memcpy(message, &head, sizeof head);
    if (length) memcpy(message + sizeof head, body, length);
    /* ENOENT: whoever has asked was killed. */
    if (write(fuse, message, head.len) != (ssize_t)head.len && errno != ENOENT) exit(1);
}

/* A notification: an answer to nobody. */
static void notify(int what, const void *body, size_t length) { reply(0, -what, body, length); }

/* To take pages out of the cache may wait until they are written, here. */
static void *forget_pages(void *unused) {
    char one;
    struct fuse_notify_inval_inode_out all = {.ino = BOARD, .off = 0, .len = 0};
    while (read(stale[0], &one, 1) == 1) notify(FUSE_NOTIFY_INVAL_INODE, &all, sizeof all);
    return unused;
}

static struct fuse_attr attributes(uint64_t node) {
    struct fuse_attr attr = {.ino = node, .nlink = 1, .blksize = PAGE};
    attr.mode = node == ROOT ? S_IFDIR | 0755 : S_IFREG | 0600;
    attr.size = node == BOARD ? MEMORY : node == COUNTS ? 200 : 0;
    return attr;
}

static void look_up(uint64_t unique, const char *name) {
    for (uint64_t node = BOARD; node <= COUNTS; node++)
        if (!strcmp(name, names[node])) {
            struct fuse_entry_out entry = {.nodeid = node, .entry_valid = 3600, .attr_valid = 3600, .attr = attributes(node)};
            return reply(unique, 0, &entry, sizeof entry);
        }
    reply(unique, ENOENT, NULL, 0);
}

static void read_from(uint64_t unique, uint64_t node, const struct fuse_read_in *in) {
    static char text[200];
    const char *from = node == BOARD ? (char *)memory : text;
    size_t size = node == BOARD ? MEMORY : sizeof text;
    memset(text, ' ', sizeof text);
    unsigned long kept = ((uint64_t *)memory)[2];
    snprintf(text, sizeof text, "{\"scaled\": %lu, \"answered\": %lu, \"written\": %lu, \"polled\": %lu, \"kept\": %lu}\n",
             scaled, answered, written, polled, kept);
    size_t at = in->offset < size ? in->offset : size;
    reply(unique, 0, from + at, in->size < size - at ? in->size : node == COUNTS ? strlen(text) - at : size - at);
}

static void write_to(uint64_t unique, const struct fuse_write_in *in) {
    if (in->offset > MEMORY || in->size > MEMORY - in->offset) return reply(unique, ENOSPC, NULL, 0);
    memcpy(memory + in->offset, in + 1, in->size);
    uint64_t *words = (uint64_t *)memory;
    words[1] = 3 * words[0] + 1;
    written++;
    struct fuse_write_out out = {.size = in->size};
    reply(unique, 0, &out, sizeof out);
    if (write(stale[1], "", 1) != 1) exit(1);
}

static void control(uint64_t unique, const struct fuse_ioctl_in *in) {
    struct {
        struct fuse_ioctl_out head;
        unsigned char body[sizeof(struct question)];
    } out = {0};
    struct question *question = (void *)out.body;
    uint64_t *number = (void *)out.body;
    if (in->in_size > sizeof out.body || in->out_size > sizeof out.body) return reply(unique, EINVAL, NULL, 0);
    memcpy(out.body, in + 1, in->in_size);
    switch (in->cmd) {
    case SCALE:
        *number = 3 * *number + 1;
        scaled++;
        break;
    case OPEN:
        *(uint32_t *)(void *)out.body = first_session + sessions++;
        break;
    case ASK:
        if (question->session - first_session >= sessions) return reply(unique, ENXIO, NULL, 0);
        question->answer = 3 * question->asked + 1;
        answered++;
        break;
    case RAISE:
    case CLEAR:
        raised = in->cmd == RAISE;
        struct fuse_notify_poll_wakeup_out wake = {.kh = poller};
        if (raised && waits) notify(FUSE_NOTIFY_POLL, &wake, sizeof wake);
        break;
    default:
        return reply(unique, ENOTTY, NULL, 0);
    }
    reply(unique, 0, &out, sizeof out.head + in->out_size);
}

static void serve_one(const struct fuse_in_header *head, const void *body) {
    struct fuse_attr_out attr = {.attr_valid = 3600, .attr = attributes(head->nodeid)};
    struct fuse_init_out init = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_write = MEMORY};
    struct fuse_open_out open = {.open_flags = head->nodeid == COUNTS ? FOPEN_DIRECT_IO : 0};
    struct fuse_statfs_out statfs = {.st = {.bsize = PAGE, .namelen = 255}};
    struct fuse_poll_out poll = {.revents = POLLOUT | (raised ? POLLIN : 0)};
    const struct fuse_poll_in *asks = body;
    uint64_t unique = head->unique;
    switch (head->opcode) {
    case FUSE_INIT: return reply(unique, 0, &init, sizeof init);
    case FUSE_LOOKUP: return look_up(unique, body);
    case FUSE_GETATTR:
    case FUSE_SETATTR: return reply(unique, 0, &attr, sizeof attr);
    case FUSE_OPEN:
    case FUSE_OPENDIR: return reply(unique, 0, &open, sizeof open);
    case FUSE_READ: return read_from(unique, head->nodeid, body);
    case FUSE_WRITE: return write_to(unique, body);
    case FUSE_IOCTL: return control(unique, body);
    case FUSE_STATFS: return reply(unique, 0, &statfs, sizeof statfs);
    case FUSE_READDIR:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR: return reply(unique, 0, NULL, 0);
    case FUSE_POLL:
        polled++;
        if (asks->flags & FUSE_POLL_SCHEDULE_NOTIFY) poller = asks->kh, waits = 1;
        return reply(unique, 0, &poll, sizeof poll);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT: return;
    default: return reply(unique, ENOSYS, NULL, 0);
    }
}

static int serve(const char *directory) {
    static _Alignas(8) unsigned char request[FUSE_MIN_READ_BUFFER + BUFFER];
    char options[100];
    pthread_t thread;
    first_session = (uint32_t)getpid() * 1000u;
    fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
    if (fuse < 0 || mkdir(directory, 0755) || mount("board", directory, "fuse", 0, options)) {
        perror(directory);
        return 1;
    }
    if (pipe(stale) || pthread_create(&thread, NULL, forget_pages, NULL)) return 1;
    puts("serving");
    fflush(stdout);
    for (;;) {
        ssize_t got = read(fuse, request, sizeof request);
        if (got < (ssize_t)sizeof(struct fuse_in_header)) {
            if (got < 0 && (errno == EINTR || errno == ENOENT)) continue;
            return 0;
        }
        serve_one((void *)request, request + sizeof(struct fuse_in_header));
    }
}

/* The job. */

static int device = -1, again = -1, epoll = -1, to_child[2], from_child[2];
static uint32_t session;
static int has_session;
static volatile uint64_t *ring;
static uint64_t asked;

static void ask_ring(void) {
    uint64_t question = ++asked;
    for (int tries = 0; tries < 300; tries++) {
        ring[0] = question;
        MUST(msync((void *)ring, MEMORY, MS_SYNC));
        for (int naps = 0; naps < 300; naps++) {
            if (ring[1] == 3 * question + 1) return;
            nap(1000);
        }
    }
    bad("the board does not answer in its memory");
}

static void ask_by(int fd) {
    uint64_t number = ++asked;
    struct question question = {.session = session, .asked = asked};
    EQUAL(MUST(ioctl(fd, SCALE, &number)), 0);
    EQUAL(number, 3 * asked + 1);
    if (!has_session) return;
    EQUAL(MUST(ioctl(fd, ASK, &question)), 0);
    EQUAL(question.answer, 3 * asked + 1);
    EQUAL(question.session, session);
}

static void wait_for(void) {
    struct epoll_event event;
    MUST(ioctl(device, CLEAR));
    EQUAL(MUST(epoll_wait(epoll, &event, 1, 0)), 0);
    /* What one board was told in the meantime another one does not know. */
    for (int tries = 0; tries < 300; tries++) {
        MUST(ioctl(again, RAISE));
        if (MUST(epoll_wait(epoll, &event, 1, 300)) == 0) continue;
        EQUAL(event.data.u64, 4711);
        return;
    }
    bad("the board has nothing to say");
}

static void set_up(const char *path) {
    device = MUST(open(path, O_RDWR | O_NONBLOCK));
    again = MUST(dup(device));
    epoll = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 4711};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, device, &event));
    ring = MUST(mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0));
    if (has_session) MUST(ioctl(device, OPEN, &session));
    MUST(pipe(to_child));
    MUST(pipe(from_child));
    if (MUST(fork())) return;
    char go;
    asked = 1000000;
    while (read(to_child[0], &go, 1) == 1) {
        ask_by(device);
        ask_ring();
        EQUAL(write(from_child[1], "", 1), 1);
    }
    _exit(0);
}
static void set_board(void) { set_up("/dev/board0"); }
static void set_session(void) {
    has_session = 1;
    set_board();
}
static void set_directory(void) { set_up("/dev/boards/board0"); }

static void verify(void) {
    char done;
    ask_by(device);
    ask_by(again);
    ask_ring();
    wait_for();
    EQUAL(write(to_child[1], "", 1), 1);
    EQUAL(read(from_child[0], &done, 1), 1);
    EQUAL(fcntl(again, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR | O_NONBLOCK);
}

/* What it writes to the memory it leaves to others to take to the board. It has no descriptor, each close(2) of which
 * would do that. */
static volatile uint64_t *kept;
static uint64_t count;
static void set_unsynced(void) {
    device = MUST(open("/dev/board0", O_RDWR));
    ring = MUST(mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0));
    MUST(close(device));
    kept = ring + 2;
    *kept = count;
}
static void verify_unsynced(void) {
    EQUAL(*kept, count);
    count++;
    *kept = count;
}

static struct mode modes[] = {
    {"board", set_board, verify},
    {"directory", set_directory, verify},
    {"session", set_session, verify},
    {"unsynced", set_unsynced, verify_unsynced},
    {0},
};
int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "serve")) return serve(argv[2]);
    return guest(argc, argv, modes);
}
