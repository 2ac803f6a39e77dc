/* A job that speaks with ckrun, built with plugins/job/ckrun.c. It takes a checkpoint and goes on, takes another one and does not,
 * and writes down what it sees. */
#include "ckrun.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static void say(const char *format, ...) {
    char line[1000];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    int log = open("/out/log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log < 0 || write(log, line, length) != length || write(log, "\n", 1) != 1) _exit(9);
    close(log);
}

static const char *before(void *data) {
    (void)data;
    say("before");
    return NULL;
}

static void after(int restarted, void *data) {
    (void)data;
    say("after %d", restarted);
}

int main(void) {
    ckrun_job *job = ckrun_job_open();
    say("present %d generation %ld", ckrun_job_present(job), ckrun_job_generation(job));
    if (ckrun_job_callbacks(job, before, after, NULL)) return 1;
    say("first %d", ckrun_job_checkpoint(job, "first", CKRUN_LEAVE_RUNNING));
    if (ckrun_job_checkpoint(job, "no/name", CKRUN_LEAVE_RUNNING) < 0) say("refused %s", ckrun_job_error(job));
    say("second %d", ckrun_job_checkpoint(job, "second", CKRUN_END));
    say("generation %ld", ckrun_job_generation(job));
    if (ckrun_job_forbid(job, "the flash is being written")) return 1;
    say("forbidden");
    while (ckrun_job_attend(job, -1) >= 0) {}
    return 0;
}
