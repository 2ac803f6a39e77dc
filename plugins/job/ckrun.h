/* The job API of ckrun: what a job can ask the container runtime under which it runs. See README.md.
 *
 * Every function may be called with a null handle, which is what ckrun_job_open() returns to a job that is not under ckrun:
 * it does nothing then, and says so by its result. */
#ifndef CKRUN_H
#define CKRUN_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ckrun_job ckrun_job;

/* Connects. NULL: not under ckrun, or without the API, or (errno) no memory, no descriptor. */
ckrun_job *ckrun_job_open(void);
void ckrun_job_close(ckrun_job *job);

/* Whether ckrun is there. */
int ckrun_job_present(const ckrun_job *job);

/* How often the job has been restarted; -1 without ckrun. */
long ckrun_job_generation(const ckrun_job *job);

/* The container's id; "" without ckrun. */
const char *ckrun_job_id(const ckrun_job *job);

/* Why the last function failed, for a person. */
const char *ckrun_job_error(const ckrun_job *job);

enum { CKRUN_FAILED = -1, CKRUN_HERE = 0, CKRUN_RESTARTED = 1 };
enum { CKRUN_END = 0, CKRUN_LEAVE_RUNNING = 1 };

/* Asks for a checkpoint, and returns on both sides of it: CKRUN_HERE in the job that goes on (with CKRUN_END it does not, and
 * never sees that), CKRUN_RESTARTED in each one that is restarted from the image. CKRUN_FAILED: the job goes on, there is
 * no image, and ckrun_job_error() says why. Calls the callbacks, if there are any. */
int ckrun_job_checkpoint(ckrun_job *job, const char *name, int leave_running);

/* No checkpoint from now on; whoever asks for one is told why. 0, or -1. */
int ckrun_job_forbid(ckrun_job *job, const char *why);
int ckrun_job_allow(ckrun_job *job);

/* `before` is called when a checkpoint is about to be taken, while all threads of the job still run; NULL is consent, a text
 * is the reason why not. `after` is called when the job goes on, `restarted` or not. Either may be null. 0, or -1.
 * Both are called by ckrun_job_attend() and ckrun_job_checkpoint() only. */
typedef const char *ckrun_before(void *data);
typedef void ckrun_after(int restarted, void *data);
int ckrun_job_callbacks(ckrun_job *job, ckrun_before *before, ckrun_after *after, void *data);

/* To be polled for reading; then call ckrun_job_attend(job, 0). It may be another one after that. -1 without ckrun. */
int ckrun_job_fd(const ckrun_job *job);

/* Waits up to `milliseconds` (-1: for ever) and does what is to be done. 1 if there was something, 0 if not, -1 when ckrun is
 * gone. */
int ckrun_job_attend(ckrun_job *job, int milliseconds);

#ifdef __cplusplus
}
#endif
#endif
