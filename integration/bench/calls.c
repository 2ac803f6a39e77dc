/* What a system call takes, in a container: for each kind the median nanoseconds of one call, over batches, as JSON.
 *
 *     calls CALLS DEVICE SOCKET
 *
 * DEVICE is /dev/random by some name, SOCKET a listening unix socket. */
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BATCHES = 50 };

static int device, zero, link_;
static struct sockaddr_un address = {.sun_family = AF_UNIX};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void check(int good, const char *what) {
    if (good) return;
    perror(what);
    exit(1);
}

static void one_getppid(void) { syscall(SYS_getppid); }

static void one_read(void) {
    char byte;
    check(read(zero, &byte, 1) == 1, "read");
}

/* The number of the command decides, in the filter. */
static void one_other_ioctl(void) {
    int flags = 0;
    check(!ioctl(zero, FIONCLEX, &flags), "FIONCLEX");
}

static void one_ioctl(void) {
    int count;
    check(!ioctl(device, RNDGETENTCNT, &count), "RNDGETENTCNT");
}

static void one_getpeername(void) {
    struct sockaddr_un name;
    socklen_t length = sizeof name;
    check(!getpeername(link_, (struct sockaddr *)&name, &length), "getpeername");
}

/* With the socket, which has to be made each time. */
static void one_connect(void) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(!connect(fd, (struct sockaddr *)&address, sizeof address), "connect");
    close(fd);
}

static int order(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const char *name, void call(void), int calls, const char *end) {
    double batches[BATCHES];
    for (int batch = 0; batch < BATCHES; batch++) {
        double began = now();
        for (int i = 0; i < calls; i++) call();
        batches[batch] = (now() - began) / calls;
    }
    qsort(batches, BATCHES, sizeof *batches, order);
    printf("\"%s\": %.1f%s", name, batches[BATCHES / 2], end);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int calls = atoi(argv[1]);
    strncpy(address.sun_path, argv[3], sizeof address.sun_path - 1);
    device = open(argv[2], O_RDWR | O_CLOEXEC);
    zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    link_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(device >= 0 && zero >= 0, "open");
    check(!connect(link_, (struct sockaddr *)&address, sizeof address), argv[3]);
    printf("{");
    measure("getppid", one_getppid, calls * 10, ", ");
    measure("read", one_read, calls * 10, ", ");
    measure("other ioctl", one_other_ioctl, calls * 10, ", ");
    measure("ioctl", one_ioctl, calls, ", ");
    measure("getpeername", one_getpeername, calls, ", ");
    measure("connect", one_connect, calls, "}\n");
    return 0;
}
