#define _GNU_SOURCE
#include "ckrun.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE 4096

struct ckrun_job {
    int fd;
    long generation;
    char id[256];
    char error[LINE];
    ckrun_before *before;
    ckrun_after *after;
    void *data;
    int wants_calls;
    /* Why it forbids checkpoints; "" if it does not. */
    char forbids[LINE];
    /* Received and not yet read. */
    char bytes[LINE];
    size_t held;
};

static int fail(ckrun_job *job, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(job->error, sizeof job->error, format, args);
    va_end(args);
    return -1;
}

static int say(ckrun_job *job, const char *format, ...) {
    char line[LINE];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (length < 0 || length >= LINE - 1) return fail(job, "the message is too long");
    /* A reason may be of several lines; the protocol's are one. */
    for (int i = 0; i < length; i++)
        if (line[i] == '\n') line[i] = ' ';
    line[length++] = '\n';
    for (int sent = 0; sent < length;) {
        ssize_t n = send(job->fd, line + sent, length - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(job, "ckrun: %s", strerror(errno));
        sent += n;
    }
    return 0;
}

/* The next line, without its end: 1. 0: none within the time; -1: the connection has ended. */
static int hear(ckrun_job *job, char line[LINE], int milliseconds) {
    for (;;) {
        char *end = memchr(job->bytes, '\n', job->held);
        if (end) {
            size_t length = end - job->bytes;
            memcpy(line, job->bytes, length);
            line[length] = 0;
            job->held -= length + 1;
            memmove(job->bytes, end + 1, job->held);
            return 1;
        }
        if (job->held == sizeof job->bytes) return fail(job, "ckrun sent a line that is too long");
        struct pollfd polled = {.fd = job->fd, .events = POLLIN};
        int ready = poll(&polled, 1, milliseconds);
        if (ready < 0 && errno == EINTR) continue;
        if (ready == 0) return 0;
        ssize_t n = read(job->fd, job->bytes + job->held, sizeof job->bytes - job->held);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return fail(job, "the connection to ckrun has ended");
        job->held += n;
    }
}

static int starts(const char *line, const char *word, const char **rest) {
    size_t length = strlen(word);
    if (strncmp(line, word, length) || (line[length] && line[length] != ' ')) return 0;
    *rest = line[length] ? line + length + 1 : line + length;
    return 1;
}

/* Connects, again or for the first time, and reads who we are. */
static int join(ckrun_job *job) {
    const char *path = getenv("CKRUN_JOB_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!path || strlen(path) >= sizeof address.sun_path) return fail(job, "not under ckrun, or without the job API");
    strcpy(address.sun_path, path);
    if (job->fd >= 0) close(job->fd);
    job->held = 0;
    job->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (job->fd < 0) return fail(job, "socket: %s", strerror(errno));
    if (connect(job->fd, (struct sockaddr *)&address, sizeof address)) {
        fail(job, "%s: %s", path, strerror(errno));
        close(job->fd);
        job->fd = -1;
        return -1;
    }
    char line[LINE];
    const char *rest, *at;
    if (hear(job, line, -1) < 0) return -1;
    if (!starts(line, "hello", &rest) || !strstr(rest, "protocol=1 ")) return fail(job, "this ckrun speaks another protocol");
    if ((at = strstr(rest, "generation="))) job->generation = atol(at + strlen("generation="));
    if ((at = strstr(rest, "id="))) snprintf(job->id, sizeof job->id, "%.*s", (int)strcspn(at + 3, " "), at + 3);
    return 0;
}

static int request(ckrun_job *job, const char *format, const char *word);

/* The connection has ended: the job was restarted, or ckrun's process was, or it is gone. */
static int rejoin(ckrun_job *job) {
    long before = job->generation;
    if (join(job) || (job->wants_calls && request(job, "%s", "callbacks"))) return -1;
    if (job->forbids[0] && request(job, "forbid %s", job->forbids)) return -1;
    int restarted = job->generation != before;
    if (job->wants_calls && job->after) job->after(restarted, job->data);
    return restarted ? CKRUN_RESTARTED : CKRUN_HERE;
}

/* One line that came unasked. */
static int heed(ckrun_job *job, const char *line) {
    const char *rest;
    if (starts(line, "before", &rest)) {
        const char *why = job->before ? job->before(job->data) : NULL;
        return why ? say(job, "veto %s", why) : say(job, "ready");
    }
    if (starts(line, "after", &rest) && job->after) job->after(0, job->data);
    return 0;
}

static int request(ckrun_job *job, const char *format, const char *word) {
    char line[LINE];
    const char *rest;
    if (say(job, format, word)) return -1;
    for (;;) {
        if (hear(job, line, -1) < 0) return -1;
        if (starts(line, "ok", &rest)) return 0;
        if (starts(line, "error", &rest)) return fail(job, "%s", rest);
        if (heed(job, line)) return -1;
    }
}

ckrun_job *ckrun_job_open(void) {
    ckrun_job *job = calloc(1, sizeof *job);
    if (!job) return NULL;
    job->fd = -1;
    if (!join(job)) return job;
    int why = errno;
    ckrun_job_close(job);
    errno = why;
    return NULL;
}

void ckrun_job_close(ckrun_job *job) {
    if (!job) return;
    if (job->fd >= 0) close(job->fd);
    free(job);
}

int ckrun_job_present(const ckrun_job *job) { return job && job->fd >= 0; }
long ckrun_job_generation(const ckrun_job *job) { return ckrun_job_present(job) ? job->generation : -1; }
const char *ckrun_job_id(const ckrun_job *job) { return job ? job->id : ""; }
int ckrun_job_fd(const ckrun_job *job) { return job ? job->fd : -1; }
const char *ckrun_job_error(const ckrun_job *job) { return job ? job->error : "not under ckrun, or without the job API"; }

/* A request that finds the connection ended makes it anew, once: the job may have been restarted since the last one. */
static int ask(ckrun_job *job, const char *format, const char *word) {
    if (!job) return -1;
    if (job->fd < 0) return fail(job, "ckrun is gone");
    struct pollfd polled = {.fd = job->fd};
    if (poll(&polled, 1, 0) > 0 && polled.revents & (POLLHUP | POLLERR) && rejoin(job) < 0) return -1;
    return request(job, format, word);
}

int ckrun_job_forbid(ckrun_job *job, const char *why) {
    if (ask(job, "forbid %s", why)) return -1;
    snprintf(job->forbids, sizeof job->forbids, "%s", why[0] ? why : "-");
    return 0;
}

int ckrun_job_allow(ckrun_job *job) {
    if (job) job->forbids[0] = 0;
    return ask(job, "%s", "allow");
}

int ckrun_job_callbacks(ckrun_job *job, ckrun_before *before, ckrun_after *after, void *data) {
    if (!job) return -1;
    job->before = before, job->after = after, job->data = data;
    if (ask(job, "%s", "callbacks")) return -1;
    job->wants_calls = 1;
    return 0;
}

int ckrun_job_checkpoint(ckrun_job *job, const char *name, int leave_running) {
    char line[LINE];
    const char *rest;
    if (ask(job, leave_running ? "checkpoint %s leave-running" : "checkpoint %s", name)) return CKRUN_FAILED;
    for (;;) {
        if (hear(job, line, -1) < 0) {
            int side = rejoin(job);
            return side == CKRUN_HERE ? fail(job, "ckrun was killed: perhaps there is an image") : side;
        }
        if (starts(line, "done", &rest)) return CKRUN_HERE;
        if (starts(line, "failed", &rest)) return fail(job, "%s", rest);
        if (heed(job, line)) return CKRUN_FAILED;
    }
}

int ckrun_job_attend(ckrun_job *job, int milliseconds) {
    char line[LINE];
    if (!ckrun_job_present(job)) return -1;
    int heard = hear(job, line, milliseconds);
    if (heard > 0) return heed(job, line) ? -1 : 1;
    return heard == 0 ? 0 : rejoin(job) < 0 ? -1 : 1;
}
