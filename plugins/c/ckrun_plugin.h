/* Write a plugin for ckrun in C or C++. The protocol itself is on ../PROTOCOL.md; this header hides the socket and JSON.
 *
 * A plugin fills a struct ckrun_plugin with one function per event and calls ckrun_plugin_serve() from main(). Whatever
 * these functions print is a log; what they return is the answer to the event:
 *
 *     static int presuspend(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
 *         if (busy()) return ckrun_fail(ck, CKRUN_VETO, "a transfer of %d s is under way", left());
 *         return 0;
 *     }
 *
 * Everything here belongs to one thread, the one that is in ckrun_plugin_serve(). Pointers that the kit gives are valid
 * until the function that was called for the event returns, unless something else is said. */
#ifndef CKRUN_PLUGIN_H
#define CKRUN_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __GNUC__
#define CKRUN_PRINTF(text, rest) __attribute__((format(printf, text, rest)))
#else
#define CKRUN_PRINTF(text, rest)
#endif

typedef struct ckrun ckrun;               /* the connection with ckrun */
typedef struct ckrun_json ckrun_json;     /* a value that ckrun has sent; NULL stands for an absent one */
typedef struct ckrun_result ckrun_result; /* the answer to an event, in the making */

/* What a function of the plugin returns, and what a call returns. 0 is success. */
enum {
    CKRUN_VETO = 1,         /* plugin: not now */
    CKRUN_UNAVAILABLE = 2,  /* plugin: what is needed is not there or is taken */
    CKRUN_MISMATCH = 3,     /* plugin: what is there is not what the image needs */
    CKRUN_LOST = 4,         /* plugin: the emulator has gone, and with it its state */
    CKRUN_DENIED = 5,       /* ckrun: the capability was not granted */
    CKRUN_STATE = 6,        /* ckrun: not allowed at this event */
    CKRUN_UNKNOWN = 7,      /* ckrun: there is no such name, task or key */
    CKRUN_LIMIT = 8,        /* ckrun, or the kit: too large, too many */
    CKRUN_GONE = 9,         /* the kit: ckrun has closed the socket */
    CKRUN_BAD_PARAMS = -32602,
    CKRUN_INTERNAL = -32603 /* anything else that went wrong */
};

/* An event. What the protocol does not give at this event is NULL. */
typedef struct ckrun_event {
    void *self;         /* of struct ckrun_plugin */
    const char *name;   /* "init", "presuspend", ... */
    double deadline;    /* seconds */
    const char *job;    /* its id */
    int64_t generation; /* restarts so far */
    const char *host;
    const char *bundle;
    const char *folder; /* precheckpoint, check, restart; see ckrun_open() */
    const char *image;  /* committed */
    const char *after;  /* resume, running */
    const char *reason; /* exit */
    const ckrun_json *requirements, *bindings;
    const ckrun_json *params; /* all of it, for what a later protocol adds */
} ckrun_event;

typedef int ckrun_function(ckrun *ck, const ckrun_event *event, ckrun_result *result);

/* Seconds that an event may take instead of the default. */
typedef struct ckrun_deadline {
    const char *event;
    double seconds;
} ckrun_deadline;

/* A plugin. ckrun sends only the events that have a function. To hello, which may only fail, the kit itself answers. */
typedef struct ckrun_plugin {
    const char *version;             /* of the plugin, for people: "softemu 1.4" */
    void *self;                      /* found again in every event */
    const ckrun_deadline *deadlines; /* ends with an event that is NULL; may be NULL */
    ckrun_function *hello, *init, *presuspend, *precheckpoint, *committed, *resume, *check, *restart, *running, *exit;
    ckrun_function *recover;
} ckrun_plugin;

/* Answers events until the job is gone or ckrun is; returns the exit status for main(). The socket is the descriptor that
 * CKRUN_PLUGIN_SOCKET names. */
int ckrun_plugin_serve(const ckrun_plugin *plugin);

/* ---- while an event is under way ---- */

/* Records the sentence (what, why, what to do) and returns the code, for `return ckrun_fail(...)`. A function that returns
 * the code of a call that has failed needs no sentence: that of the call is used. */
int ckrun_fail(ckrun *ck, int code, const char *format, ...) CKRUN_PRINTF(3, 4);
/* The sentence of the last failure. */
const char *ckrun_failure(const ckrun *ck);

/* An option of the plugin, or NULL. Valid for ever. */
const char *ckrun_option(const ckrun *ck, const char *name);
/* Whether a capability was granted: "memory", "registers", "signals". */
int ckrun_granted(const ckrun *ck, const char *capability);
/* The name that this plugin has in this job. Valid for ever. */
const char *ckrun_plugin_name(const ckrun *ck);
/* Whether ckrun has given up waiting for this event: there is no point in going on with it. */
int ckrun_cancelled(ckrun *ck);

/* Opens a file in the event's folder, with open()'s flags and mode 0600; returns -1 and errno. */
int ckrun_open(const ckrun *ck, const char *file, int flags);
/* Takes descriptor `index` of the event: it belongs to the plugin then. Those not taken are closed after the event. */
int ckrun_take_fd(ckrun *ck, unsigned index);

/* ---- the answer; what goes wrong here is reported when the event is answered ---- */

/* kind: "device", "memory" or "socket". The descriptor may be closed afterwards, the kit has one of its own. */
void ckrun_add_binding(ckrun_result *result, const char *kind, const char *virtual_name, const char *real_name);
void ckrun_add_binding_fd(ckrun_result *result, const char *kind, const char *virtual_name, int fd);
void ckrun_add_handle(ckrun_result *result, const char *space, int64_t virtual_number, int64_t real_number);
void ckrun_add_env(ckrun_result *result, const char *name, const char *value);
/* options: separated by commas, "ro,nosuid"; may be NULL. */
void ckrun_add_mount(ckrun_result *result, const char *source, const char *destination, const char *options);

/* A handle in an ioctl: in the structure that its argument points to, or, by `at`, "argument" or "result". `offset` and `size`
 * are those in the structure; an argument has a `size`, or 0. */
typedef struct ckrun_ioctl_handle {
    const char *space;
    unsigned offset, size;
    const char *direction;
    const char *at;
} ckrun_ioctl_handle;
void ckrun_add_ioctl(ckrun_result *result, const char *device, uint64_t command, const ckrun_ioctl_handle *handles,
                     size_t count);

/* What a restart needs. */
void ckrun_require(ckrun_result *result, const char *name, const char *value);
void ckrun_require_integer(ckrun_result *result, const char *name, int64_t value);
/* `value` is JSON. */
void ckrun_require_json(ckrun_result *result, const char *name, const char *value);

/* ---- calls; each returns 0 or a code, and ckrun_failure() is then its sentence; what they give is valid until the next
 * call ---- */

enum { CKRUN_TO_REAL, CKRUN_TO_VIRTUAL };
/* A name of kind "device", "memory" or "socket", one way or the other. */
int ckrun_translate(ckrun *ck, const char *kind, int direction, const char *name, const char **answer);
/* A number of kind "pid", "tid" (space is NULL) or "handle". */
int ckrun_translate_number(ckrun *ck, const char *kind, const char *space, int direction, int64_t number, int64_t *answer);
/* What descriptor `number` of the job's process `pid` is; either pointer may be NULL. */
int ckrun_translate_fd(ckrun *ck, int64_t pid, int64_t number, const char **virtual_name, const char **real_name);
int ckrun_bind_handle(ckrun *ck, const char *space, int64_t virtual_number, int64_t real_number);
int ckrun_unbind_handle(ckrun *ck, const char *space, int64_t virtual_number);

/* The plugin's own key-value area, kept in the image. `value` is JSON; NULL removes the key. */
int ckrun_put(ckrun *ck, const char *key, const char *value);
int ckrun_put_string(ckrun *ck, const char *key, const char *value);
int ckrun_put_integer(ckrun *ck, const char *key, int64_t value);
int ckrun_get(ckrun *ck, const char *key, const ckrun_json **value);

typedef struct ckrun_task {
    int64_t pid, tid; /* as the job sees them */
    const char *command;
} ckrun_task;
int ckrun_tasks(ckrun *ck, const ckrun_task **tasks, size_t *count);

/* Memory of a process of the job; any length. */
int ckrun_read(ckrun *ck, int64_t pid, uint64_t address, void *bytes, size_t length);
int ckrun_write(ckrun *ck, int64_t pid, uint64_t address, const void *bytes, size_t length);

/* A register by its name in struct user_regs_struct. */
typedef struct ckrun_register {
    const char *name;
    uint64_t value;
} ckrun_register;
/* Fills in the values of the registers that are named. */
int ckrun_get_registers(ckrun *ck, int64_t tid, ckrun_register *registers, size_t count);
int ckrun_set_registers(ckrun *ck, int64_t tid, const ckrun_register *registers, size_t count);

int ckrun_signal(ckrun *ck, int64_t pid, int number);
/* Returns when every plugin of the job that takes part in the event is here. */
int ckrun_barrier(ckrun *ck, const char *name);
/* level: "error", "warn", "info" or "debug". */
int ckrun_log(ckrun *ck, const char *level, const char *format, ...) CKRUN_PRINTF(3, 4);
/* Any call, for those that a later protocol adds: params is a JSON object or NULL; so is the result. */
int ckrun_call(ckrun *ck, const char *method, const char *params, const ckrun_json **result);

/* ---- values that ckrun has sent; all of these may be asked about NULL ---- */

typedef enum ckrun_type {
    CKRUN_ABSENT,
    CKRUN_NULL,
    CKRUN_BOOLEAN,
    CKRUN_NUMBER,
    CKRUN_STRING,
    CKRUN_LIST,
    CKRUN_OBJECT
} ckrun_type;
ckrun_type ckrun_json_type(const ckrun_json *value);
/* A member of an object, or NULL. */
const ckrun_json *ckrun_member(const ckrun_json *object, const char *name);
/* The items of a list or the members of an object: for (item = ckrun_first(list); item; item = ckrun_next(item)). */
const ckrun_json *ckrun_first(const ckrun_json *list);
const ckrun_json *ckrun_next(const ckrun_json *item);
/* The name of a member of an object; NULL if it has a zero byte in it, or is no member. */
const char *ckrun_key(const ckrun_json *member);
/* A string, in UTF-8; NULL if it is none, or has a zero byte in it. */
const char *ckrun_string(const ckrun_json *value);
/* The other kinds; `otherwise` if it is not of that kind (for an integer: if it is not below 2^53). */
int64_t ckrun_integer(const ckrun_json *value, int64_t otherwise);
double ckrun_number(const ckrun_json *value, double otherwise);
int ckrun_boolean(const ckrun_json *value, int otherwise);
/* A string of hexadecimal digits, "0x7f00c0de1000": 0, or -1 if it is none. */
int ckrun_hexadecimal(const ckrun_json *value, uint64_t *number);

#ifdef __cplusplus
}
#endif
#endif
