/*
 * A process with memory of all kinds that knows what every page of it must contain.
 *
 *     memtouch STATUS [child | brief]
 *
 * It keeps rewriting its hot pages and checks all of its memory over and over. SIGUSR1 makes it take
 * a step: it writes pages that the step's number determines, maps memory, unmaps some, and gives
 * some back. With "child" it forks first; the child has the same memory, of which it changes some,
 * and takes the same steps. After each pass STATUS is overwritten with one line of a fixed size (and
 * STATUS.child by the child, so that a dump sees files that do not grow):
 *
 *     step=00000003 passes=0000000123 PASS
 *
 * FAIL instead of PASS names the first page that is wrong, and ends the process. With "brief" it takes
 * two steps by itself and ends after BRIEF passes, of which it checks none: for a slow recorder.
 *
 * tests/interop/memtouch.py has the same layout: keep both in step.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define WORDS (PAGE / 8)

/* Beyond where a heap can begin. Not aligned to 2 MiB and shorter, so that no huge page ever covers
 * them: a store makes one page dirty, not 512. */
#define PRIVATE 0x100001000UL
#define SHARED 0x110001000UL
#define MAPPED 0x120001000UL         /* each step maps a region of its own */
#define MAPPED_STRIDE 0x100000UL

enum {
	HOT = 32,                    /* pages [0, HOT) are rewritten in every pass */
	FILLED = 256,                /* pages [HOT, FILLED) have content; steps rewrite them */
	ZEROS = 288,                 /* [FILLED, ZEROS) were written, with zeros */
	READ_ONLY = 320,             /* [ZEROS, READ_ONLY) were read: the zero page is mapped */
	PRIVATE_PAGES = 384,         /* [READ_ONLY, ...) untouched until a step comes by */
	SHARED_PAGES = 64,           /* page 0 is `control`; the first half is the parent's */
	STEP_PAGES = 24, STEP_NEW = 4, STEP_SHARED = 4, MAPPED_PAGES = 8, MAX_STEPS = 16,
	GIVEN_BACK = 240, GIVEN_BACK_PAGES = 8,     /* by step 2 */
	CHILD_OWN = 224, CHILD_OWN_PAGES = 16,      /* rewritten by the child after fork */
	BRIEF = 6,
};

/* In memory that both processes share. */
struct control {
	volatile uint64_t step;
	volatile uint64_t child_step;
	volatile uint64_t child_failed;
};
#define control ((struct control *)SHARED)

static uint64_t who;                             /* 0 parent, 1 child */
static uint64_t has_child;
static uint64_t private_version[PRIVATE_PAGES];  /* 0: all zero */
static uint64_t shared_version[SHARED_PAGES];    /* 0: not ours */
static uint64_t mapped_version[MAX_STEPS + 1];   /* 0: not mapped */
static uint64_t step, passes;
static int status;

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}
static uint64_t seed_of(uint64_t address, uint64_t version, uint64_t writer)
{
	return mix(address ^ version << 40 ^ writer << 63);
}
static void fill(uint64_t address, uint64_t version, uint64_t writer)
{
	uint64_t seed = seed_of(address, version, writer), *at = (uint64_t *)address;
	for (uint64_t i = 0; i < WORDS; i++)
		at[i] = version ? mix(seed + i) : 0;
}

static void report(const char *verdict)
{
	char line[128] = "";
	int n = snprintf(line, sizeof line, "step=%08llu passes=%010llu %s",
			 (unsigned long long)step, (unsigned long long)passes, verdict);
	memset(line + n, ' ', sizeof line - n);
	line[sizeof line - 1] = '\n';
	if (pwrite(status, line, sizeof line, 0) != sizeof line)
		_exit(3);
}
static void check(uint64_t address, uint64_t version, uint64_t writer)
{
	uint64_t seed = seed_of(address, version, writer);
	const volatile uint64_t *at = (uint64_t *)address;
	for (uint64_t i = 0; i < WORDS; i++) {
		uint64_t wanted = version ? mix(seed + i) : 0;
		if (at[i] != wanted) {
			char verdict[64];
			snprintf(verdict, sizeof verdict, "FAIL %#llx word %llu version %llu",
				 (unsigned long long)address, (unsigned long long)i,
				 (unsigned long long)version);
			report(verdict);
			if (who)
				control->child_failed = 1;
			_exit(1);
		}
	}
}

static uint64_t private_page(uint64_t i) { return PRIVATE + i * PAGE; }
static uint64_t shared_page(uint64_t i) { return SHARED + i * PAGE; }
static uint64_t mapped_region(uint64_t k) { return MAPPED + k * MAPPED_STRIDE; }

/* Who wrote a private page last: until it writes itself, a child has its parent's. */
static uint64_t writer_of(uint64_t i) { return who && (private_version[i] >> 8 || i < HOT); }

static void write_private(uint64_t i, uint64_t version)
{
	private_version[i] = version;
	fill(private_page(i), version, writer_of(i));
}
static void write_shared(uint64_t i, uint64_t version)
{
	shared_version[i] = version;
	fill(shared_page(i), version, who);
}

static void check_all(void)
{
	/* Nothing may touch the untouched: versions of 0 beyond READ_ONLY are left alone. */
	for (uint64_t i = 0; i < PRIVATE_PAGES; i++)
		if (i < READ_ONLY || private_version[i])
			check(private_page(i), private_version[i], writer_of(i));
	for (uint64_t i = 0; i < SHARED_PAGES; i++)
		if (shared_version[i])
			check(shared_page(i), shared_version[i], who);
	for (uint64_t k = 1; k <= MAX_STEPS; k++)
		for (uint64_t i = 0; mapped_version[k] && i < MAPPED_PAGES; i++)
			check(mapped_region(k) + i * PAGE, mapped_version[k], who);
}

static void map(uint64_t address, uint64_t pages, int flags)
{
	if (mmap((void *)address, pages * PAGE, PROT_READ | PROT_WRITE,
		 flags | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)address)
		_exit(4);
}

static void take_step(uint64_t k)
{
	uint64_t version = k << 8;
	for (uint64_t i = 0; i < STEP_PAGES; i++)
		write_private(HOT + ((k - 1) * STEP_PAGES + i) % (CHILD_OWN - HOT), version);
	for (uint64_t i = 0; i < STEP_NEW; i++)
		write_private(READ_ONLY + ((k - 1) * STEP_NEW + i) % (PRIVATE_PAGES - READ_ONLY), version);
	for (uint64_t i = 0; i < STEP_SHARED; i++)
		write_shared((who ? SHARED_PAGES / 2 : 1) + (k + i) % (SHARED_PAGES / 2 - 1), version);
	map(mapped_region(k), MAPPED_PAGES, MAP_PRIVATE);
	mapped_version[k] = version;
	for (uint64_t i = 0; i < MAPPED_PAGES; i++)
		fill(mapped_region(k) + i * PAGE, version, who);
	if (k == 2) {
		madvise((void *)private_page(GIVEN_BACK), GIVEN_BACK_PAGES * PAGE, MADV_DONTNEED);
		for (uint64_t i = 0; i < GIVEN_BACK_PAGES; i++)
			private_version[GIVEN_BACK + i] = 0;
	}
	if (k == 3) {
		munmap((void *)mapped_region(1), MAPPED_PAGES * PAGE);
		mapped_version[1] = 0;
	}
	step = k;
}

static void set_up(void)
{
	map(PRIVATE, PRIVATE_PAGES, MAP_PRIVATE);
	map(SHARED, SHARED_PAGES, MAP_SHARED);
	for (uint64_t i = 0; i < ZEROS; i++)
		write_private(i, i < FILLED);
	for (uint64_t i = ZEROS; i < READ_ONLY; i++)
		check(private_page(i), 0, 0);
}

static void write_hot(void)
{
	passes++;
	for (uint64_t i = 0; i < HOT; i++)
		write_private(i, passes);
}

static void pass(const sigset_t *signals)
{
	const struct timespec moment = { .tv_nsec = 30000000 };
	write_hot();
	int asked = sigtimedwait(signals, NULL, &moment);
	uint64_t wanted = who ? control->step : step + (asked == SIGUSR1);
	if (wanted > step && wanted <= MAX_STEPS) {
		take_step(wanted);
		if (who) {
			control->child_step = wanted;
		} else {
			control->step = wanted;
			while (has_child && control->child_step < wanted && !control->child_failed)
				nanosleep(&moment, NULL);
		}
	}
	check_all();
	if (control->child_failed) {
		report("FAIL in the child");
		_exit(1);
	}
	report("PASS");
}

int main(int argc, char **argv)
{
	char name[4096];
	sigset_t signals;
	if (argc < 2 || argc > 3)
		return 2;
	has_child = argc == 3 && !strcmp(argv[2], "child");
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	set_up();
	if (has_child && fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		who = 1;
	}
	snprintf(name, sizeof name, "%s%s", argv[1], who ? ".child" : "");
	status = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (status < 0)
		return 3;
	for (uint64_t i = 1; i < SHARED_PAGES / 2; i++)
		write_shared(who ? SHARED_PAGES / 2 + i : i, 1);
	for (uint64_t i = 0; who && i < CHILD_OWN_PAGES; i++)
		write_private(CHILD_OWN + i, 1 << 8);
	if (argc == 3 && !strcmp(argv[2], "brief")) {
		for (uint64_t i = 0; i < BRIEF; i++) {
			write_hot();
			if (i < 2)
				take_step(i + 1);
			report("PASS");
		}
		return 0;
	}
	for (;;)
		pass(&signals);
}
