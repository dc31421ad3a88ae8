/*
 * Drives CRIU as a program with libcriu does: over a service's socket, or by starting `criu swrk`.
 *
 *   client socket PATH PID DIR     check, version, features, three pre-dumps and a dump
 *   client binary PATH PID DIR     the same with a `criu` of its own, and then a restore as its child
 *
 * Prints one line for each step: its name and what libcriu returned.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* From libcriu's criu/criu.h, which cannot be included: it wants headers of protobuf-c. */
typedef void *criu_notify_arg_t;
struct criu_feature_check {
	bool mem_track;
	bool lazy_pages;
	bool pidfd_store;
};
int criu_init_opts(void);
int criu_set_service_address(const char *path);
int criu_set_service_binary(const char *path);
void criu_set_pid(int pid);
void criu_set_images_dir_fd(int fd);
void criu_set_log_level(int log_level);
int criu_set_log_file(const char *log_file);
void criu_set_track_mem(bool track_mem);
int criu_set_parent_images(const char *path);
void criu_set_notify_cb(int (*cb)(char *action, criu_notify_arg_t na));
int criu_notify_pid(criu_notify_arg_t na);
int criu_check(void);
int criu_get_version(void);
int criu_feature_check(struct criu_feature_check *features, size_t size);
int criu_pre_dump(void);
int criu_dump(void);
int criu_restore_child(void);

static int notified(char *action, criu_notify_arg_t arg)
{
	printf("notify %s %d\n", action, criu_notify_pid(arg));
	return 0;
}

static int begin(const char *how, const char *path)
{
	if (criu_init_opts())
		return -1;
	if (!strcmp(how, "socket"))
		return criu_set_service_address(path);
	return criu_set_service_binary(path);
}

static int directory(const char *base, const char *name)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", base, name);
	mkdir(path, 0700);
	return open(path, O_RDONLY | O_DIRECTORY);
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "0", "1", "2", "3" };
	static const char *const parents[] = { NULL, "../0", "../1", "../2" };
	int i, ret, pid;

	if (argc != 5)
		return 2;
	setvbuf(stdout, NULL, _IONBF, 0);
	if (begin(argv[1], argv[2]))
		return 2;
	printf("check %d\n", criu_check());
	printf("version %d\n", criu_get_version());
	struct criu_feature_check features = { .mem_track = true };
	ret = criu_feature_check(&features, sizeof(features));
	printf("features %d %d\n", ret, features.mem_track);
	for (i = 0; i < 4; i++) {
		int fd = directory(argv[4], names[i]);

		if (begin(argv[1], argv[2]))
			return 2;
		criu_set_pid(atoi(argv[3]));
		criu_set_images_dir_fd(fd);
		criu_set_log_level(4);
		criu_set_log_file("dump.log");
		criu_set_track_mem(true);
		if (parents[i])
			criu_set_parent_images(parents[i]);
		if (i == 3)
			criu_set_notify_cb(notified);
		printf("%s %d\n", i < 3 ? "pre-dump" : "dump", i < 3 ? criu_pre_dump() : criu_dump());
		close(fd);
	}
	if (strcmp(argv[1], "binary"))
		return 0;
	if (begin(argv[1], argv[2]))
		return 2;
	criu_set_images_dir_fd(directory(argv[4], names[3]));
	criu_set_log_level(4);
	criu_set_log_file("restore.log");
	criu_set_notify_cb(notified);
	pid = criu_restore_child();
	printf("restore %d\n", pid);
	if (pid <= 0)
		return 1;
	printf("alive %d\n", kill(pid, 0));
	kill(pid, SIGTERM);
	/* It is this program's child. */
	printf("reaped %d\n", waitpid(pid, &ret, 0) == pid);
	return 0;
}
