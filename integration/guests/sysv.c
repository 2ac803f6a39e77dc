/* System V IPC, message queues of POSIX, and the names of the host. */
#include "guest.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

enum { SIZE = 3 * 4096 + 100, KEY = 0x5eed };
static int id, other;
static char *at, *again;

static struct shmid_ds segment(int of) {
    struct shmid_ds found;
    MUST(shmctl(of, IPC_STAT, &found));
    return found;
}
static char *attach(int to, int flags) { return MUST((char *)shmat(to, NULL, flags)); }

/* One segment at two places and in two processes; the hole in front makes that its id is not the first one. */
static void set_segment(void) {
    int hole = MUST(shmget(IPC_PRIVATE, 1, 0600));
    id = MUST(shmget(KEY, SIZE, IPC_CREAT | IPC_EXCL | 0640));
    MUST(shmctl(hole, IPC_RMID, NULL));
    at = attach(id, 0), again = attach(id, SHM_RDONLY);
    fill(at, SIZE, 1);
    share();
    if (MUST(fork())) return;
    for (;;) {
        CHECK(filled(at + 16, SIZE - 16, 3));
        at[0]++;
        beat(0);
    }
}
static void verify_segment(void) {
    alive(0);
    EQUAL(MUST(shmget(KEY, SIZE, 0)), id);
    EQUAL(at[0], again[0]);
    CHECK(filled(again + 16, SIZE - 16, 3));
    struct shmid_ds now = segment(id);
    EQUAL(now.shm_segsz, SIZE);
    EQUAL(now.shm_nattch, 4);
    EQUAL(now.shm_perm.mode & 07777, 0640);
}
/* Nobody has it attached, it is locked, and somebody else has made it. */
static void set_unattached(void) {
    MUST(setegid(1001));
    MUST(seteuid(1000));
    id = MUST(shmget(KEY, SIZE, IPC_CREAT | 0666));
    other = MUST(semget(KEY, 2, IPC_CREAT | 0600));
    MUST(seteuid(0));
    MUST(setegid(0));
    struct shmid_ds now = segment(id);
    now.shm_perm.uid = 7, now.shm_perm.gid = 8;
    MUST(shmctl(id, IPC_SET, &now));
    MUST(shmctl(id, SHM_LOCK, NULL));
    fill(at = attach(id, 0), SIZE, 9);
    MUST(shmdt(at));
}
static void verify_unattached(void) {
    struct shmid_ds now = segment(id);
    EQUAL(now.shm_nattch, 0);
    EQUAL(now.shm_perm.mode & 07777, 0666 | SHM_LOCKED);
    EQUAL(now.shm_perm.cuid, 1000);
    EQUAL(now.shm_perm.cgid, 1001);
    EQUAL(now.shm_perm.uid, 7);
    EQUAL(now.shm_perm.gid, 8);
    struct semid_ds set;
    MUST(semctl(other, 0, IPC_STAT, &set));
    EQUAL(set.sem_perm.cuid, 1000);
    EQUAL(set.sem_otime, 0);
    CHECK(filled(at = attach(id, SHM_RDONLY), SIZE, 9));
    MUST(shmdt(at));
}
/* It goes with its last attachment, of which a part is gone already. */
static void set_doomed(void) {
    id = MUST(shmget(IPC_PRIVATE, 4 * 4096, 0600));
    fill(at = attach(id, 0), 4 * 4096, 5);
    MUST(shmctl(id, IPC_RMID, NULL));
    MUST(munmap(at + 4096, 4096));
    MUST(mprotect(at + 3 * 4096, 4096, PROT_READ));
}
static void verify_doomed(void) {
    struct shmid_ds now = segment(id);
    CHECK(now.shm_perm.mode & SHM_DEST);
    CHECK(filled(at, 4096, 5));
    CHECK(filled(at + 2 * 4096, 2 * 4096, 5 + 2 * 512));
    unsigned char in;
    FAILS(mincore(at + 4096, 4096, &in), ENOMEM);
}

static int value(int number) { return MUST(semctl(id, number, GETVAL)); }
static void change(int number, int by) {
    struct sembuf one = {.sem_num = (unsigned short)number, .sem_op = (short)by};
    MUST(semop(id, &one, 1));
}
/* Values, and who has changed them last. */
static void set_semaphores(void) {
    MUST(semctl(MUST(semget(IPC_PRIVATE, 1, 0)), 0, IPC_RMID));
    id = MUST(semget(KEY, 3, IPC_CREAT | IPC_EXCL | 0620));
    change(0, 5), change(2, 32767);
    if (MUST(fork())) {
        while (value(1) != 7) nap(100);
        return;
    }
    change(1, 7);
    for (;;) pause();
}
static void verify_semaphores(void) {
    EQUAL(MUST(semget(KEY, 3, 0)), id);
    EQUAL(value(0), 5);
    EQUAL(value(1), 7);
    EQUAL(value(2), 32767);
    EQUAL(MUST(semctl(id, 0, GETPID)), getpid());
    EQUAL(MUST(semctl(id, 1, GETPID)), getpid() + 1);
    EQUAL(MUST(semctl(id, 1, GETNCNT)), 0);
    struct semid_ds set;
    MUST(semctl(id, 0, IPC_STAT, &set));
    CHECK(set.sem_otime);
    EQUAL(set.sem_perm.mode, 0620);
}
/* Two processes that wait for each other all the time. */
static void set_ping(void) {
    id = MUST(semget(IPC_PRIVATE, 2, 0600));
    if (MUST(fork())) return;
    for (;;) {
        change(0, -1);
        nap(500);
        change(1, 1);
    }
}
static void verify_ping(void) {
    change(0, 1);
    change(1, -1);
}

struct message {
    long type;
    char text[5000];
};
static void send(long type, int bytes) {
    struct message message = {.type = type};
    memset(message.text, bytes, sizeof message.text);
    MUST(msgsnd(id, &message, (size_t)bytes, IPC_NOWAIT));
}
static void receive(long which, long type, int bytes) {
    struct message message;
    EQUAL(MUST(msgrcv(id, &message, sizeof message.text, which, IPC_NOWAIT)), bytes);
    EQUAL(message.type, type);
    for (int i = 0; i < bytes; i++) EQUAL(message.text[i], (char)bytes);
}
static void set_messages(void) {
    MUST(msgctl(MUST(msgget(IPC_PRIVATE, 0)), IPC_RMID, NULL));
    id = MUST(msgget(KEY, IPC_CREAT | IPC_EXCL | 0602));
    send(3, 10), send(5, 5000), send(3, 0), send(1, 200);
    struct msqid_ds queue;
    MUST(msgctl(id, IPC_STAT, &queue));
    queue.msg_qbytes = 8000, queue.msg_perm.uid = 12;
    MUST(msgctl(id, IPC_SET, &queue));
}
static void verify_messages(void) {
    struct msqid_ds queue;
    MUST(msgctl(id, IPC_STAT, &queue));
    EQUAL(queue.msg_qnum, 4);
    EQUAL(queue.msg_qbytes, 8000);
    EQUAL(queue.msg_perm.uid, 12);
    EQUAL(queue.msg_perm.mode, 0602);
    EQUAL(MUST(msgget(KEY, 0)), id);
    receive(3, 3, 10), receive(0, 5, 5000), receive(-2, 1, 200), receive(0, 3, 0);
    FAILS(msgrcv(id, &queue, 1, 0, IPC_NOWAIT), ENOMSG);
    send(3, 10), send(5, 5000), send(3, 0), send(1, 200);
}
/* A process that waits for a message, and one that waits for room. */
static void set_queue(void) {
    id = MUST(msgget(IPC_PRIVATE, 0600)), other = MUST(msgget(IPC_PRIVATE, 0600));
    if (MUST(fork())) return;
    struct message message;
    for (;;) {
        EQUAL(MUST(msgrcv(id, &message, sizeof message.text, 0, 0)), 4000);
        nap(500);
        MUST(msgsnd(other, &message, 1, 0));
    }
}
static void verify_queue(void) {
    struct message message = {.type = 6};
    for (int i = 0; i < 6; i++) MUST(msgsnd(id, &message, 4000, 0));
    for (int i = 0; i < 6; i++) EQUAL(MUST(msgrcv(other, &message, 1, 6, 0)), 1);
}

static void put(int to, int bytes, unsigned priority) {
    char text[8192];
    memset(text, bytes, sizeof text);
    MUST(mq_send(to, text, (size_t)bytes, priority));
}
static void take(int from, int bytes, unsigned priority) {
    char text[8192];
    unsigned with;
    EQUAL(MUST(mq_receive(from, text, sizeof text, &with)), bytes);
    EQUAL(with, priority);
    for (int i = 0; i < bytes; i++) EQUAL(text[i], (char)bytes);
}
/* One of POSIX that is full, by three descriptors; one that is empty and that nobody has open. */
static void set_posix(void) {
    struct mq_attr attributes = {.mq_maxmsg = 6, .mq_msgsize = 5000};
    umask(0);
    id = MUST(mq_open("/full", O_CREAT | O_EXCL | O_RDWR | O_NONBLOCK, 0621, &attributes));
    other = MUST(mq_open("/full", O_WRONLY));
    MUST(fchown(id, 12, 13));
    MUST(close(MUST(mq_open("/empty", O_CREAT | O_EXCL | O_RDONLY, 0400, NULL))));
    put(id, 10, 3), put(id, 5000, 0), put(id, 20, 3), put(id, 0, 32767), put(id, 30, 0), put(id, 40, 3);
}
static void verify_posix(void) {
    struct mq_attr now;
    struct stat file;
    static char line[8192];
    MUST(mq_getattr(id, &now));
    EQUAL(now.mq_curmsgs, 6);
    EQUAL(now.mq_maxmsg, 6);
    EQUAL(now.mq_msgsize, 5000);
    EQUAL(now.mq_flags, O_NONBLOCK);
    MUST(mq_getattr(other, &now));
    EQUAL(now.mq_flags, 0);
    MUST(fstat(other, &file));
    EQUAL(file.st_mode & 07777, 0621);
    EQUAL(file.st_uid, 12);
    EQUAL(file.st_gid, 13);
    FAILS(mq_receive(other, line, sizeof line, NULL), EBADF);
    FAILS(mq_send(id, "", 0, 1), EAGAIN);
    take(id, 0, 32767), take(id, 10, 3), take(id, 20, 3), take(id, 40, 3), take(id, 5000, 0), take(id, 30, 0);
    FAILS(mq_receive(id, line, sizeof line, NULL), EAGAIN);
    put(id, 10, 3), put(id, 5000, 0), put(other, 20, 3), put(id, 0, 32767), put(id, 30, 0), put(id, 40, 3);
    int empty = MUST(mq_open("/empty", O_RDONLY));
    MUST(fstat(empty, &file));
    EQUAL(file.st_mode & 07777, 0400);
    MUST(mq_getattr(empty, &now));
    EQUAL(now.mq_curmsgs, 0);
    MUST(close(empty));
}
/* Two processes that wait for messages of each other. */
static void set_posix_waiting(void) {
    struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 8192};
    id = MUST(mq_open("/there", O_CREAT | O_RDWR, 0600, &attributes));
    other = MUST(mq_open("/back", O_CREAT | O_RDWR, 0600, &attributes));
    if (MUST(fork())) return;
    for (;;) {
        take(id, 7, 1);
        nap(500);
        put(other, 8, 2);
    }
}
static void verify_posix_waiting(void) {
    for (int i = 0; i < 3; i++) put(id, 7, 1);
    for (int i = 0; i < 3; i++) take(other, 8, 2);
}

/* A segment that is open as if it were a file. */
static void set_open(void) {
    set_segment();
    unsigned long from, to;
    char path[100];
    for (const char *line = proc("/proc/self/maps"); line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (sscanf(line, "%lx-%lx", &from, &to) == 2 && from == (unsigned long)at) break;
    }
    snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", from, to);
    MUST(open(path, O_RDONLY));
}

static void set_names(void) {
    MUST(sethostname("a-new-name", 10));
    MUST(setdomainname("a.domain", 8));
}
static void verify_names(void) {
    char name[65];
    MUST(gethostname(name, sizeof name));
    CHECK(!strcmp(name, "a-new-name"));
    MUST(getdomainname(name, sizeof name));
    CHECK(!strcmp(name, "a.domain"));
}

static const struct mode modes[] = {
    {"segment", set_segment, verify_segment},
    {"segment-open", set_open, verify_segment},
    {"segment-unattached", set_unattached, verify_unattached},
    {"segment-doomed", set_doomed, verify_doomed},
    {"semaphores", set_semaphores, verify_semaphores},
    {"semaphores-waiting", set_ping, verify_ping},
    {"messages", set_messages, verify_messages},
    {"messages-waiting", set_queue, verify_queue},
    {"posix", set_posix, verify_posix},
    {"posix-waiting", set_posix_waiting, verify_posix_waiting},
    {"names", set_names, verify_names},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
