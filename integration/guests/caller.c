/* Connects to HOST PORT, or to a unix socket at PATH, and answers every line that comes with the line, a count, and what it
 * believes to be connected to. At "again" it makes a new connection and goes on with that; at "ioctl PATH" it asks a
 * device for a number, as /dev/random gives one; to "local" it answers with its own end's address. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* hosts(5); a static program has no resolver. */
static struct in_addr find(const char *host) {
    struct in_addr address;
    char line[1000], ip[100], name[100];
    if (inet_aton(host, &address)) return address;
    FILE *hosts = fopen("/etc/hosts", "re");
    while (hosts && fgets(line, sizeof line, hosts))
        if (sscanf(line, "%99s %99s", ip, name) == 2 && !strcmp(name, host) && inet_aton(ip, &address)) {
            fclose(hosts);
            return address;
        }
    die(host);
    return address;
}

static FILE *dial(char **where) {
    struct sockaddr_in inet = {.sin_family = AF_INET};
    struct sockaddr_un file = {.sun_family = AF_UNIX};
    int is_path = where[0][0] == '/', fd = socket(is_path ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    if (is_path)
        strncpy(file.sun_path, where[0], sizeof file.sun_path - 1);
    else
        inet.sin_addr = find(where[0]), inet.sin_port = htons(atoi(where[1]));
    struct sockaddr *to = is_path ? (struct sockaddr *)&file : (struct sockaddr *)&inet;
    if (fd < 0 || connect(fd, to, is_path ? sizeof file : sizeof inet)) die("connect");
    FILE *link = fdopen(fd, "r+");
    if (!link) die("fdopen");
    return link;
}

static void name_of(int (*ask)(int, struct sockaddr *, socklen_t *), FILE *link, char text[200]) {
    union {
        struct sockaddr any;
        struct sockaddr_in inet;
        struct sockaddr_un file;
    } name;
    socklen_t length = sizeof name;
    memset(&name, 0, sizeof name);
    if (ask(fileno(link), &name.any, &length)) die("the name of an end");
    if (name.any.sa_family == AF_UNIX)
        snprintf(text, 200, "%s", name.file.sun_path);
    else
        snprintf(text, 200, "%s:%d", inet_ntoa(name.inet.sin_addr), ntohs(name.inet.sin_port));
}

int main(int argc, char **argv) {
    char line[1000], name[200];
    if (argc < 2) return 1;
    FILE *link = dial(argv + 1);
    for (long count = 1; fgets(line, sizeof line, link); count++) {
        line[strcspn(line, "\n")] = 0;
        int number = -1;
        if (!strncmp(line, "ioctl ", 6)) {
            int fd = open(line + 6, O_RDWR | O_NOCTTY | O_CLOEXEC);
            if (fd < 0 || ioctl(fd, RNDGETENTCNT, &number)) number = -errno;
            close(fd);
        }
        name_of(strcmp(line, "local") ? getpeername : getsockname, link, name);
        fseek(link, 0, SEEK_CUR);
        if (number != -1)
            fprintf(link, "%s %ld %d\n", line, count, number);
        else
            fprintf(link, "%s %ld %s\n", line, count, name);
        fflush(link);
        fseek(link, 0, SEEK_CUR);
        if (!strcmp(line, "again")) {
            fclose(link);
            link = dial(argv + 1);
        }
    }
    return 0;
}
