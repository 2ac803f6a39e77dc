/* The kernel's share of `run`: what no container runtime can do without, in one small static process.
 *
 *   floor ROOTFS COMMAND [ARG...]
 *
 * Five new namespaces, a cgroup in every v1 hierarchy below /sys/fs/cgroup with its device rules, the rootfs with the
 * mounts, devices and protected paths of the default configuration, three capabilities, no_new_privs, exec, wait, and
 * the removal of the cgroups. Nothing is read, checked or remembered.
 *
 * gcc -O2 -static -o floor floor.c */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define BASE "/sys/fs/cgroup"
#define HIDDEN (MS_NOSUID | MS_NODEV | MS_NOEXEC)
#define TRY(call) do { if ((call) < 0) err(125, "%s", #call); } while (0)

static char hierarchies[16][64], own[16][512], name[32];
static int count;

static void put(const char *dir, const char *file, const char *text)
{
	char path[640];
	snprintf(path, sizeof path, "%s/%s", dir, file);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	TRY(fd);
	TRY(write(fd, text, strlen(text)));
	close(fd);
}

static void copy(const char *from, const char *to, const char *file)
{
	char path[640], text[256];
	snprintf(path, sizeof path, "%s/%s", from, file);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	TRY(fd);
	ssize_t length = read(fd, text, sizeof text - 1);
	TRY(length);
	close(fd);
	text[length] = 0;
	put(to, file, text);
}

static void make_cgroups(pid_t pid)
{
	char base[512], id[16];
	snprintf(id, sizeof id, "%d", pid);
	for (int i = 0; i < count; i++) {
		snprintf(base, sizeof base, BASE "/%.63s", hierarchies[i]);
		TRY(mkdir(own[i], 0755));
		if (strstr(hierarchies[i], "cpuset")) {
			copy(base, own[i], "cpuset.cpus");
			copy(base, own[i], "cpuset.mems");
		}
		if (!strcmp(hierarchies[i], "devices")) {
			const char *rules[] = { "c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm",
						"c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm" };
			put(own[i], "devices.deny", "a");
			for (size_t k = 0; k < sizeof rules / sizeof *rules; k++)
				put(own[i], "devices.allow", rules[k]);
		}
		put(own[i], "cgroup.procs", id);
	}
}

static void find_hierarchies(void)
{
	DIR *dir = opendir(BASE);
	if (!dir)
		err(125, BASE);
	for (struct dirent *e; (e = readdir(dir)) && count < 16;) {
		char probe[512];
		snprintf(probe, sizeof probe, BASE "/%s/release_agent", e->d_name);
		/* Only the root of a v1 hierarchy has one; a link to a combined hierarchy is that hierarchy again. */
		if (e->d_type != DT_DIR || e->d_name[0] == '.' || access(probe, F_OK))
			continue;
		snprintf(hierarchies[count], sizeof *hierarchies, "%.63s", e->d_name);
		snprintf(own[count], sizeof *own, BASE "/%.63s/%s", hierarchies[count], name);
		count++;
	}
	closedir(dir);
}

static void mount_all(const char *root)
{
	static const struct { const char *type, *at; unsigned long flags; const char *data; } all[] = {
		{ "proc", "proc", 0, 0 },
		{ "tmpfs", "dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k" },
		{ "devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5" },
		{ "tmpfs", "dev/shm", HIDDEN, "mode=1777,size=65536k" },
		{ "mqueue", "dev/mqueue", HIDDEN, 0 },
		{ "sysfs", "sys", HIDDEN | MS_RDONLY, 0 },
		{ "tmpfs", "sys/fs/cgroup", HIDDEN, "mode=755" },
	};
	TRY(mount(0, "/", 0, MS_SLAVE | MS_REC, 0));
	TRY(mount(root, root, 0, MS_BIND | MS_REC, 0));
	TRY(chdir(root));
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		mkdir(all[i].at, 0755);
		TRY(mount(all[i].type, all[i].at, all[i].type, all[i].flags, all[i].data));
	}
	for (int i = 0; i < count; i++) {
		char at[640];
		snprintf(at, sizeof at, "sys/fs/cgroup/%.63s", hierarchies[i]);
		TRY(mkdir(at, 0755));
		TRY(mount(own[i], at, 0, MS_BIND, 0));
		TRY(mount(0, at, 0, MS_BIND | MS_REMOUNT | MS_RDONLY | HIDDEN, 0));
	}
	TRY(mount(0, "sys/fs/cgroup", 0, MS_BIND | MS_REMOUNT | MS_RDONLY | HIDDEN, 0));
	static const struct { const char *path; int major, minor; } devices[] = {
		{ "dev/null", 1, 3 }, { "dev/zero", 1, 5 }, { "dev/full", 1, 7 },
		{ "dev/random", 1, 8 }, { "dev/urandom", 1, 9 }, { "dev/tty", 5, 0 },
	};
	for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
		TRY(mknod(devices[i].path, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)));
	TRY(symlink("/proc/self/fd", "dev/fd"));
	TRY(symlink("pts/ptmx", "dev/ptmx"));
}

static void protect(void)
{
	const char *masked[] = { "proc/acpi", "proc/kcore", "proc/keys", "proc/timer_list", "sys/firmware", "proc/scsi" };
	const char *fixed[] = { "proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger" };
	for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
		/* A file takes /dev/null, a directory an empty tmpfs; what is not there needs nothing. */
		if (mount("/dev/null", masked[i], 0, MS_BIND, 0))
			mount("tmpfs", masked[i], "tmpfs", MS_RDONLY, 0);
	for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
		if (!mount(fixed[i], fixed[i], 0, MS_BIND | MS_REC, 0))
			TRY(mount(0, fixed[i], 0, MS_BIND | MS_REMOUNT | MS_RDONLY | HIDDEN, 0));
	TRY(mount(0, ".", 0, MS_BIND | MS_REMOUNT | MS_RDONLY, 0));
}

static void become(char **argv)
{
	struct rlimit limit = { 1024, 1024 };
	TRY(setrlimit(RLIMIT_NOFILE, &limit));
	for (int c = 0; prctl(PR_CAPBSET_READ, c) >= 0; c++)
		if (c != CAP_AUDIT_WRITE && c != CAP_KILL && c != CAP_NET_BIND_SERVICE)
			TRY(prctl(PR_CAPBSET_DROP, c));
	unsigned kept = 1u << CAP_AUDIT_WRITE | 1u << CAP_KILL | 1u << CAP_NET_BIND_SERVICE;
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { kept, kept, 0 }, { 0, 0, 0 } };
	TRY(syscall(SYS_capset, &head, data));
	TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	execv(argv[0], argv);
	err(127, "%s", argv[0]);
}

int main(int argc, char **argv)
{
	int ready[2], status;
	char byte;
	if (argc < 3)
		errx(2, "usage: floor ROOTFS COMMAND [ARG...]");
	snprintf(name, sizeof name, "floor-%d", getpid());
	find_hierarchies();
	TRY(pipe2(ready, O_CLOEXEC));
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET,
		.exit_signal = SIGCHLD,
	};
	pid_t pid = syscall(SYS_clone3, &args, sizeof args);
	TRY(pid);
	if (pid == 0) {
		TRY(read(ready[0], &byte, 1));
		TRY(sethostname("floor", 5));
		mount_all(argv[1]);
		protect();
		TRY(syscall(SYS_pivot_root, ".", "."));
		TRY(umount2(".", MNT_DETACH));
		TRY(chdir("/"));
		become(argv + 2);
	}
	make_cgroups(pid);
	TRY(write(ready[1], "x", 1));
	TRY(waitpid(pid, &status, 0));
	for (int i = 0; i < count; i++)
		TRY(rmdir(own[i]));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
