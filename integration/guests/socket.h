/* For guests that have sockets; behind guest.h. */
#include <sys/socket.h>

/* Options of sockets that are numbers. */
static int on(int of, int level, int option) {
    int value = -1;
    socklen_t size = sizeof value;
    MUST(getsockopt(of, level, option, &value, &size));
    return value;
}
static void set(int of, int level, int option, int value) {
    MUST(setsockopt(of, level, option, &value, sizeof value));
}
