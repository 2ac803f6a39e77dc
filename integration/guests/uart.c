/* A job that talks to the guest of plugins/qemu by a serial line: each line is answered by how many came, and a digest of all
 * that came. It is always some lines ahead of the answers that it reads, so that some are on their way whenever it is
 * stopped. */
#include "guest.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { AHEAD = 7 };
static int line = -1;
static unsigned count, digest = 0x811c9dc5;
static char expected[AHEAD][19];

static void ask(void) {
    char text[32];
    int length = snprintf(text, sizeof text, "%.*s%u\n", (int)(count % 13), "abcdefghijklm", count);
    EQUAL(write(line, text, (size_t)length), length);
    for (int n = 0; n < length; n++) digest = (digest ^ (unsigned char)text[n]) * 0x01000193u;
    count++;
    snprintf(expected[count % AHEAD], sizeof expected[0], "%08x %08x\n", count, digest);
}

static void answered(const char *answer) {
    char text[19] = {0};
    for (size_t length = 0; length < 18;) {
        struct pollfd ready = {.fd = line, .events = POLLIN};
        if (MUST(poll(&ready, 1, 120000)) == 0) bad("the machine does not answer");
        ssize_t got = MUST(read(line, text + length, 18 - length));
        CHECK(got > 0);
        length += (size_t)got;
    }
    CHECK(strcmp(text, answer) == 0);
}

static void set_line(void) {
    line = MUST(open("/dev/emu0", O_RDWR | O_NOCTTY));
    for (int n = 0; n < AHEAD - 1; n++) ask();
}
/* The same over a socket. */
static void set_socket(void) {
    struct sockaddr_un emu = {.sun_family = AF_UNIX, .sun_path = "/run/emu"};
    line = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(line, (struct sockaddr *)&emu, sizeof emu));
    for (int n = 0; n < AHEAD - 1; n++) ask();
}
static void verify_line(void) {
    ask();
    answered(expected[(count + 1) % AHEAD]);
}

static struct mode modes[] = {
    {"line", set_line, verify_line},
    {"socket", set_socket, verify_line},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
