/*
 * A program with known memory: private pages at 0x10000000 (argv[1] of them), eight shared ones at
 * 0x8000000. Page i is filled with the low byte of i, with i + 1 in its first eight bytes; of the
 * last quarter every second page is left untouched. Then a counter goes up in each of the first
 * argv[2] pages, for ever.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, SHARED_PAGES = 8 };

int main(int argc, char **argv)
{
	size_t pages = argc > 1 ? strtoul(argv[1], NULL, 0) : 64;
	size_t touched = argc > 2 ? strtoul(argv[2], NULL, 0) : 16;
	unsigned char *private = mmap((void *)0x10000000, pages * PAGE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	unsigned char *shared = mmap((void *)0x8000000, SHARED_PAGES * PAGE, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (private == MAP_FAILED || shared == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < SHARED_PAGES; i++)
		memset(shared + i * PAGE, 0xa0 + i, PAGE);
	for (size_t i = 0; i < pages; i++) {
		if (i >= pages - pages / 4 && i % 2)
			continue;
		memset(private + i * PAGE, i & 255, PAGE);
		*(uint64_t *)(private + i * PAGE) = i + 1;
	}
	for (uint64_t count = 1;; count++) {
		for (size_t i = 0; i < touched && i < pages; i++)
			*(volatile uint64_t *)(private + i * PAGE + 8) = count;
		usleep(500);
	}
}
