/*
 * A process with one mapping of each kind of memory that a dump may or may not send.
 *
 *     sharing STATUS FILE
 *
 * Each region has 16 pages at an address of its own (tests/interop/test_shared_memory.py has the
 * same list), of which the first few are written; pages of a file that are only read are the file's.
 * SIGUSR1 makes it write the first page of each region anew. STATUS gets a line "step=N" each time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 16
#define BASE 0x100001000UL           /* not aligned to 2 MiB: no huge page ever covers it */
#define STRIDE 0x10000000UL
#define HUGE 0x200000UL
#define HUGE_PRIVATE 0x200000000UL
#define HUGE_SHARED 0x210000000UL

enum { PRIVATE, FILE_PRIVATE, ANONYMOUS, MEMFD, FILE_SHARED, REGIONS };
static const int written[REGIONS] = { 5, 3, 7, 9, 6 };
enum { OPEN_MEMFD_PAGES = 11 };

static unsigned long at(int region) { return BASE + region * STRIDE; }

static void fail(const char *what)
{
	perror(what);
	_exit(1);
}
static void map(unsigned long address, unsigned long length, int flags, int fd)
{
	if (mmap((void *)address, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, fd,
		 0) != (void *)address)
		fail("mmap");
}
static void fill(int region, int pages, int value)
{
	for (int page = 0; page < pages; page++)
		memset((void *)(at(region) + page * PAGE), value, PAGE);
}
static int memfd(const char *name, int pages)
{
	static char content[PAGE];
	int fd = memfd_create(name, 0);
	if (fd < 0 || ftruncate(fd, PAGES * PAGE))
		fail("memfd");
	memset(content, 9, sizeof content);
	for (int page = 0; page < pages; page++)
		if (write(fd, content, PAGE) != PAGE)
			fail("write");
	return fd;
}

int main(int argc, char **argv)
{
	static char content[PAGES * PAGE];
	sigset_t signals;
	char line[32];
	int file, status, step = 1;
	if (argc != 3)
		return 2;
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigprocmask(SIG_BLOCK, &signals, NULL);

	memset(content, 8, sizeof content);
	file = open(argv[2], O_RDWR | O_CREAT | O_TRUNC, 0644);
	if (file < 0 || write(file, content, sizeof content) != sizeof content)
		fail(argv[2]);
	map(at(PRIVATE), PAGES * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	map(at(FILE_PRIVATE), PAGES * PAGE, MAP_PRIVATE, file);
	map(at(ANONYMOUS), PAGES * PAGE, MAP_SHARED | MAP_ANONYMOUS, -1);
	map(at(MEMFD), PAGES * PAGE, MAP_SHARED, memfd("mapped", 0));
	map(at(FILE_SHARED), PAGES * PAGE, MAP_SHARED, file);
	memfd("open", OPEN_MEMFD_PAGES);
	map(HUGE_PRIVATE, HUGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	map(HUGE_SHARED, HUGE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	memset((void *)HUGE_PRIVATE, 1, PAGE);
	memset((void *)HUGE_SHARED, 1, PAGE);
	for (int region = 0; region < REGIONS; region++)
		fill(region, written[region], 1);
	for (int page = 0; page < PAGES; page++)
		(void)*(volatile char *)(at(FILE_PRIVATE) + page * PAGE);

	status = open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	for (;; step++) {
		int length = snprintf(line, sizeof line, "step=%d\n", step);
		if (pwrite(status, line, length, 0) != length)
			fail(argv[1]);
		while (sigwaitinfo(&signals, NULL) != SIGUSR1)
			;            /* interrupted: the process was frozen for a moment */
		for (int region = 0; region < REGIONS; region++)
			fill(region, 1, step + 1);
	}
}
