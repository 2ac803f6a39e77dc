/* System calls that somebody else answers: connections to a name that leads elsewhere. Four threads make them without a pause, and
 * none may fail, whoever is killed meanwhile. */
#include "guest.h"
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

static const struct sockaddr_un there = {.sun_family = AF_UNIX, .sun_path = "/run/emu.sock"};

static void dial(void) {
    struct sockaddr_un peer = {0};
    socklen_t length = sizeof peer;
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    MUST(connect(fd, (const struct sockaddr *)&there, sizeof there));
    MUST(getpeername(fd, (struct sockaddr *)&peer, &length));
    if (strcmp(peer.sun_path, there.sun_path)) bad("the peer is %s", peer.sun_path);
    MUST(close(fd));
}

static void *dials(void *data) {
    (void)data;
    for (;;) dial();
    return NULL;
}

static void set_connections(void) {
    for (int i = 0; i < 3; i++) {
        pthread_t id;
        CHECK(!pthread_create(&id, NULL, dials, NULL));
    }
}

int main(int argc, char **argv) {
    static const struct mode modes[] = {
        {"connections", set_connections, dial},
        {NULL, NULL, NULL},
    };
    return guest(argc, argv, modes);
}
