/* Terminals. */
#include "guest.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <termios.h>

static int master, slave;
static char name[32];

static short events(int of, short wanted) {
    struct pollfd asked = {.fd = of, .events = wanted};
    MUST(poll(&asked, 1, 0));
    return asked.revents;
}
static int index_of(int of) {
    int index;
    MUST(ioctl(of, TIOCGPTN, &index));
    return index;
}
static int waiting(int at) {
    int bytes;
    MUST(ioctl(at, FIONREAD, &bytes));
    return bytes;
}
static int new_master(void) {
    int new = MUST(posix_openpt(O_RDWR | O_NOCTTY));
    int unlocked = 0;
    MUST(ioctl(new, TIOCSPTLCK, &unlocked));
    return new;
}
static void open_pair(void) {
    master = new_master();
    snprintf(name, sizeof name, "/dev/pts/%d", index_of(master));
    slave = MUST(open(name, O_RDWR | O_NOCTTY));
}
static void local(int at, tcflag_t off, tcflag_t on) {
    struct termios settings;
    MUST(tcgetattr(at, &settings));
    settings.c_lflag = (settings.c_lflag & ~off) | on;
    MUST(tcsetattr(at, TCSANOW, &settings));
}
static void raw(int at) {
    struct termios settings;
    MUST(tcgetattr(at, &settings));
    cfmakeraw(&settings);
    MUST(tcsetattr(at, TCSANOW, &settings));
}
static void type(const char *keys) { EQUAL(MUST(write(master, keys, strlen(keys))), strlen(keys)); }
static void says(int at, const char *words) {
    char got[256] = "";
    size_t length = strlen(words);
    EQUAL(MUST(read(at, got, sizeof got - 1)), length);
    if (strcmp(got, words)) bad("read %s, not %s", got, words);
}
/* The same of a master, to whom the kernel brings a line piece by piece. */
static void comes_out(int of, const char *words) {
    char got[256] = "";
    size_t length = strlen(words), held = 0;
    while (held < length) held += (size_t)MUST(read(of, got + held, sizeof got - 1 - held));
    if (strcmp(got, words)) bad("read %s, not %s", got, words);
}

/* The indices, with gaps; the settings, of which none is the usual one. */
static struct {
    int master, slave, index;
    struct termios settings;
    struct winsize size;
} pairs[3];
static void set_pairs(void) {
    int gaps[8];
    for (int i = 0; i < 8; i++) gaps[i] = new_master();
    for (int i = 0; i < 3; i++) {
        open_pair();
        pairs[i].master = master;
        pairs[i].slave = slave;
        pairs[i].index = index_of(master);
        struct termios *t = &pairs[i].settings;
        MUST(tcgetattr(slave, t));
        t->c_iflag ^= (unsigned)(IGNBRK | IXANY | IUTF8) >> i;
        t->c_oflag ^= OLCUC;
        t->c_lflag ^= ECHOK | ECHOE;
        t->c_cc[VERASE] = (cc_t)(24 + i);
        t->c_cc[VMIN] = (cc_t)(5 + i);
        MUST(tcsetattr(slave, TCSANOW, t));
        MUST(tcgetattr(slave, t));
        pairs[i].size = (struct winsize){(unsigned short)(20 + i), (unsigned short)(70 + i), 3, 4};
        MUST(ioctl(slave, TIOCSWINSZ, &pairs[i].size));
        MUST(fchown(slave, 1000 + (uid_t)i, 5));
        MUST(fchmod(slave, 0640));
    }
    for (int i = 0; i < 8; i++) close(gaps[i]);
}
static void verify_pairs(void) {
    for (int i = 0; i < 3; i++) {
        struct termios now;
        struct winsize size;
        struct stat status;
        char path[32], link[64] = "", self[64];
        EQUAL(index_of(pairs[i].master), pairs[i].index);
        for (int end = 0; end < 2; end++) {
            MUST(tcgetattr(end ? pairs[i].master : pairs[i].slave, &now));
            CHECK(!memcmp(&now, &pairs[i].settings, sizeof now));
            MUST(ioctl(end ? pairs[i].master : pairs[i].slave, TIOCGWINSZ, &size));
            CHECK(!memcmp(&size, &pairs[i].size, sizeof size));
        }
        snprintf(path, sizeof path, "/dev/pts/%d", pairs[i].index);
        MUST(stat(path, &status));
        EQUAL(status.st_uid, 1000 + i);
        EQUAL(status.st_gid, 5);
        EQUAL(status.st_mode & 07777, 0640);
        snprintf(self, sizeof self, "/proc/self/fd/%d", pairs[i].slave);
        MUST(readlink(self, link, sizeof link - 1));
        CHECK(!strcmp(link, path));
        EQUAL(major(status.st_rdev), 136);
        MUST(write(pairs[i].master, "a\r", 2));
        char got[8];
        EQUAL(MUST(read(pairs[i].slave, got, 8)), 2);
        /* The echo, with the carriage return and the line feed. */
        for (ssize_t held = 0; held < 3;) held += MUST(read(pairs[i].master, got, (size_t)(3 - held)));
        EQUAL(events(pairs[i].master, POLLIN), 0);
    }
}

/* Lines that wait, one of them cut by ^D, one that is being typed; nothing is echoed twice. */
static void type_lines(void) {
    type("first\n");
    type("second\x04");
    type("\x04");
    type("third\nbeing ty");
}
static void set_lines(void) {
    open_pair();
    local(slave, ECHO, 0);
    type_lines();
}
static void verify_lines(void) {
    static int turn;
    if (turn++ % 4) return;
    says(slave, "first\n");
    says(slave, "second");
    says(slave, "");
    says(slave, "third\n");
    EQUAL(waiting(slave), 0);
    EQUAL(events(slave, POLLIN), 0);
    type("\x7f\x7f" "typed\n");
    says(slave, "being typed\n");
    EQUAL(events(master, POLLIN), 0);
    type_lines();
    EQUAL(events(slave, POLLIN), POLLIN);
}
/* Bytes that wait, of all values. */
static void type_bytes(void) {
    unsigned char all[3000];
    for (size_t i = 0; i < sizeof all; i++) all[i] = (unsigned char)i;
    /* As much as the line discipline takes at the moment. */
    for (size_t sent = 0; sent < sizeof all;) sent += (size_t)MUST(write(master, all + sent, sizeof all - sent));
    while (waiting(slave) < (int)sizeof all) nap(100);
}
static void set_bytes(void) {
    open_pair();
    raw(slave);
    type_bytes();
}
static void verify_bytes(void) {
    unsigned char all[4000];
    EQUAL(waiting(slave), 3000);
    EQUAL(MUST(read(slave, all, sizeof all)), 3000);
    for (size_t i = 0; i < 3000; i++) EQUAL(all[i], i & 255);
    type_bytes();
}
/* Output that nobody has seen, a little and as much as there can be, and a writer that waits. */
static void set_output(void) {
    open_pair();
    EQUAL(MUST(write(slave, "one\ntwo\n", 8)), 8);
}
static void verify_output(void) {
    EQUAL(events(master, POLLIN), POLLIN);
    comes_out(master, "one\r\ntwo\r\n");
    EQUAL(MUST(write(slave, "one\ntwo\n", 8)), 8);
}
static uint32_t put, got;
static void fill_output(void) {
    for (;; put++) {
        ssize_t written = write(slave, &put, 4);
        if (written == -1 && errno == EAGAIN) return;
        EQUAL(written, 4);
    }
}
static void set_full(void) {
    open_pair();
    raw(slave);
    MUST(fcntl(slave, F_SETFL, O_NONBLOCK));
    fill_output();
    CHECK(put > 1500);
}
static void verify_full(void) {
    for (int i = 0; i < 600; i++, got++) {
        uint32_t word;
        for (ssize_t have = 0; have < 4;) have += MUST(read(master, (char *)&word + have, (size_t)(4 - have)));
        EQUAL(word, got);
    }
    EQUAL(MUST(fcntl(slave, F_GETFL)) & O_NONBLOCK, O_NONBLOCK);
    fill_output();
    CHECK(put - got > 1000);
}
/* Output that was stopped by a key, or by the program. */
static void set_stopped(void) {
    open_pair();
    local(slave, ECHO, 0);
    type("\x13");
    EQUAL(MUST(fcntl(slave, F_SETFL, O_NONBLOCK)), 0);
    while (events(slave, POLLOUT)) nap(100);
}
static void verify_stopped(void) {
    FAILS(write(slave, "x", 1), EAGAIN);
    EQUAL(events(slave, POLLOUT), 0);
    static int turn;
    if (turn++ % 4) return;
    type("\x11");
    while (!events(slave, POLLOUT)) nap(100);
    EQUAL(MUST(write(slave, "x", 1)), 1);
    says(master, "x");
    type("\x13");
    while (events(slave, POLLOUT)) nap(100);
}

/* Modes of both ends. */
static int others[3];
static void set_modes(void) {
    open_pair();
    int on = 1;
    MUST(ioctl(master, TIOCPKT, &on));
    others[0] = MUST(open(name, O_RDONLY | O_NOCTTY | O_NONBLOCK));
    others[1] = MUST(ioctl(master, TIOCGPTPEER, O_WRONLY | O_NOCTTY | O_CLOEXEC));
    others[2] = MUST(dup(slave));
    MUST(ioctl(slave, TIOCEXCL));
    MUST(ioctl(master, TIOCSPTLCK, &on));
    EQUAL(MUST(write(slave, "x", 1)), 1);
    nap(1000);
}
static void verify_modes(void) {
    char packet[8];
    int value;
    EQUAL(MUST(read(master, packet, 8)), 2);
    EQUAL(packet[0], TIOCPKT_DATA);
    EQUAL(packet[1], 'x');
    EQUAL(MUST(write(slave, "x", 1)), 1);
    MUST(ioctl(slave, 0x80045440 /* TIOCGEXCL */, &value));
    EQUAL(value, 1);
    MUST(ioctl(master, 0x80045439 /* TIOCGPTLCK */, &value));
    EQUAL(value, 1);
    EQUAL(MUST(fcntl(others[0], F_GETFL)) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
    EQUAL(MUST(fcntl(others[1], F_GETFL)) & (O_ACCMODE | O_NONBLOCK), O_WRONLY);
    EQUAL(MUST(fcntl(others[1], F_GETFD)), FD_CLOEXEC);
    EQUAL(MUST(fcntl(slave, F_GETFL)) & (O_ACCMODE | O_NONBLOCK), O_RDWR);
    FAILS(read(others[0], packet, 8), EAGAIN);
    MUST(fcntl(others[2], F_SETFL, O_NONBLOCK));
    EQUAL(MUST(fcntl(slave, F_GETFL)) & O_NONBLOCK, O_NONBLOCK);
    MUST(fcntl(others[2], F_SETFL, 0));
}
/* One end is closed: the slave, never opened; the slave, once open; the master. */
static int unopened, closed, hung;
static void set_closed(void) {
    unopened = new_master();
    open_pair();
    closed = master;
    EQUAL(MUST(write(slave, "last", 4)), 4);
    close(slave);
    open_pair();
    close(master);
    hung = slave;
}
static void verify_closed(void) {
    char bytes[8];
    EQUAL(events(unopened, POLLIN), 0);
    EQUAL(events(closed, POLLIN) & POLLHUP, POLLHUP);
    EQUAL(waiting(closed), 4);
    EQUAL(MUST(read(hung, bytes, 8)), 0);
    FAILS(write(hung, "x", 1), EIO);
    EQUAL(events(hung, POLLIN) & POLLHUP, POLLHUP);
}
/* Both ends are watched. */
static int watcher;
static void watch(int fd, uint32_t wanted) {
    struct epoll_event event = {.events = wanted, .data.fd = fd};
    MUST(epoll_ctl(watcher, EPOLL_CTL_ADD, fd, &event));
}
static void set_watched(void) {
    open_pair();
    raw(slave);
    watcher = MUST(epoll_create1(0));
    watch(master, EPOLLIN);
    watch(slave, EPOLLIN);
}
static void reports(int fd) {
    struct epoll_event event;
    EQUAL(MUST(epoll_wait(watcher, &event, 1, 120000)), 1);
    EQUAL(event.data.fd, fd);
}
static void verify_watched(void) {
    struct epoll_event event;
    EQUAL(MUST(epoll_wait(watcher, &event, 1, 0)), 0);
    type("x");
    reports(slave);
    says(slave, "x");
    EQUAL(MUST(write(slave, "y", 1)), 1);
    reports(master);
    says(master, "y");
}

/* A session on a terminal, as a shell has it: a child leads it, one grandchild is in the foreground, another behind, and one
 * has let go of the terminal. Nobody is told that the size has changed. */
enum { LEADER, FRONT, BACK, WITHOUT, RESIZED };
static atomic_int *resized;
static void on_resize(int signal) {
    (void)signal;
    atomic_fetch_add(resized, 1);
}
static pid_t grandchild(int heart) {
    pid_t pid = MUST(fork());
    if (pid) return pid;
    int own = -1;
    if (heart != WITHOUT) own = MUST(open("/dev/tty", O_RDWR));
    if (heart == FRONT || heart == BACK) MUST(setpgid(0, 0));
    if (heart == WITHOUT) MUST(ioctl(slave, TIOCNOTTY));
    atomic_store(&shared->numbers[heart], getpid());
    pid_t session = getsid(0), front = number(FRONT);
    while (number(LEADER) < 2) nap(500);
    for (;;) {
        if (heart == WITHOUT) {
            FAILS(open("/dev/tty", O_RDWR), ENXIO);
        } else {
            EQUAL(MUST(tcgetsid(own)), session);
            EQUAL(MUST(tcgetpgrp(own)), front);
            struct stat status;
            MUST(fstat(own, &status));
            EQUAL(major(status.st_rdev), 5);
            close(MUST(open("/dev/tty", O_RDWR)));
        }
        if (heart == FRONT) {
            char line[64];
            EQUAL(MUST(write(own, "?", 1)), 1);
            EQUAL(MUST(read(own, line, sizeof line)), 4);
            if (memcmp(line, "yes\n", 4)) bad("read %.4s", line);
        }
        beat(heart);
    }
}
static void set_session(void) {
    share();
    resized = &shared->numbers[RESIZED];
    open_pair();
    local(slave, ECHO, 0);
    if (!MUST(fork())) {
        signals_expected = 1;
        MUST(setsid());
        close(master);
        slave = MUST(open(name, O_RDWR));
        signal(SIGWINCH, on_resize);
        signal(SIGTTOU, SIG_IGN);
        atomic_store(&shared->numbers[LEADER], 1);
        for (int i = FRONT; i <= WITHOUT; i++) grandchild(i);
        MUST(tcsetpgrp(slave, number(FRONT)));
        for (int i = FRONT; i <= WITHOUT; i++) number(i);
        atomic_store(&shared->numbers[LEADER], 2);
        for (;;) {
            EQUAL(MUST(tcgetsid(slave)), getpid());
            EQUAL(MUST(tcgetpgrp(slave)), number(FRONT));
            beat(LEADER);
        }
    }
    while (number(LEADER) < 2) nap(500);
}
static void verify_session(void) {
    char question;
    for (int i = 0; i < 3; i++) {
        EQUAL(MUST(read(master, &question, 1)), 1);
        EQUAL(question, '?');
        type("yes\n");
    }
    all_alive(RESIZED);
    EQUAL(atomic_load(resized), 0);
    EQUAL(MUST(tcgetpgrp(master)), number(FRONT));
}

/* Another line discipline, which every kernel has: one that swallows all. */
static void set_discipline(void) {
    open_pair();
    int null = 27;
    MUST(ioctl(slave, TIOCSETD, &null));
}
static void verify_discipline(void) {}

/* A slave that was opened by its master, as a descriptor to be closed by execve, and then not. */
static int twin;
static void set_peer(void) {
    master = new_master();
    slave = MUST(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
    twin = MUST(dup(slave));
    MUST(fcntl(master, F_SETFD, FD_CLOEXEC));
    MUST(fcntl(slave, F_SETFD, FD_CLOEXEC));
}
static void verify_peer(void) {
    char byte;
    EQUAL(MUST(fcntl(master, F_GETFD)), FD_CLOEXEC);
    EQUAL(MUST(fcntl(slave, F_GETFD)), FD_CLOEXEC);
    EQUAL(MUST(fcntl(twin, F_GETFD)), 0);
    local(slave, ICANON | ECHO, 0);
    EQUAL(MUST(write(master, "x", 1)), 1);
    EQUAL(MUST(read(twin, &byte, 1)), 1);
    EQUAL(byte, 'x');
}

int main(int argc, char **argv) {
    static const struct mode modes[] = {
        {"peer", set_peer, verify_peer},
        {"pairs", set_pairs, verify_pairs},
        {"lines", set_lines, verify_lines},
        {"bytes", set_bytes, verify_bytes},
        {"output", set_output, verify_output},
        {"output-full", set_full, verify_full},
        {"output-stopped", set_stopped, verify_stopped},
        {"end-modes", set_modes, verify_modes},
        {"closed", set_closed, verify_closed},
        {"watched", set_watched, verify_watched},
        {"session", set_session, verify_session},
        {"discipline", set_discipline, verify_discipline},
        {NULL, NULL, NULL},
    };
    return guest(argc, argv, modes);
}
