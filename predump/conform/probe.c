/*
 * Executes memory operations on the kernel that it runs on and reports what the kernel shows.
 *
 * It is /init of the small initramfs that predump builds: it mounts what it needs, loads the
 * modules it finds in /modules, makes a swap device, says @@READY, and then serves requests on the
 * console until "quit":
 *
 *     run SECONDS NAME     then operations of the script language, one a line ("snap" and "csnap"
 *     ...                  take a snapshot of the task or its child), then
 *     end
 *
 * Each request is answered by one line: @@T and the scenario as JSON (docs/conform.md describes
 * both). A scenario runs in a process of its own, which writes its report into memory shared with
 * the server, so that one that hangs leaves what it had, and the operation that it hung in.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define REGIONS 8
#define REGION_BASE 0x1000000000UL
#define REGION_STRIDE (1UL << 30)
#define SWAP_DEVICE "/dev/zram0"
#define NO_CHILD (-1000)
#define MAX_LINES 512
#define LINE 160

/* Newer than some C libraries know. */
enum {
	ADV_COLD = 20, ADV_PAGEOUT = 21, ADV_POPULATE_READ = 22, ADV_POPULATE_WRITE = 23,
	ADV_COLLAPSE = 25, MOVE_DONTUNMAP = 4, UFFD_WP_UNPOPULATED = 1 << 13, UFFD_WP_ASYNC = 1 << 15,
	SCAN_SOFT_DIRTY = 1 << 7,
};
struct scan_request {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t inverted, all_of, any_of, wanted;
};
struct scan_range { uint64_t start, end, categories; };
#define SCAN_IOCTL _IOWR('f', 16, struct scan_request)

static long page_size;
static struct utsname machine;

/* ---- the report: two growing texts in memory that server and scenario share ---- */

struct report {
	size_t ops_len, snaps_len;
	char pending[LINE * 2];      /* the operation being executed, as JSON without its end */
	char ops[1 << 20];
	char snaps[96 << 20];
};
static struct report *report;

static void append(char *text, size_t size, size_t *len, const char *format, va_list args)
{
	int n = vsnprintf(text + *len, size - *len, format, args);
	if (n > 0 && *len + n < size)
		*len += n;
}
static void say_op(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	append(report->ops, sizeof report->ops, &report->ops_len, format, args);
	va_end(args);
}
static void say_snap(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	append(report->snaps, sizeof report->snaps, &report->snaps_len, format, args);
	va_end(args);
}

/* ---- small things ---- */

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), rc = 0;
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		rc = -errno;
	close(fd);
	return rc;
}
static long read_number(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		return -1;
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	return n > 0 ? atol(text) : -1;
}
static int failed(long result) { return result == -1 ? -errno : 0; }

/* ---- accesses that may fault ---- */

static sigjmp_buf on_fault;
static volatile sig_atomic_t guarded;

static void fault_handler(int number)
{
	if (guarded)
		siglongjmp(on_fault, number);
	_exit(99);
}
static uint32_t stamp = 1;

enum access { LOAD, STORE, FILL };
static int access_page(char *page, enum access how, int byte)
{
	int number = sigsetjmp(on_fault, 1);
	if (!number) {
		guarded = 1;
		if (how == STORE)
			*(volatile uint32_t *)page = ++stamp;
		else if (how == FILL)
			memset(page, byte, page_size);
		else
			(void)*(volatile uint32_t *)page;
	}
	guarded = 0;
	return number;
}

/* ---- regions and operations ---- */

static long region_pages[REGIONS];           /* up to the last page ever mapped; 0: unused */
static char *page_at(long region, long page)
{
	return (char *)(REGION_BASE + region * REGION_STRIDE) + page * page_size;
}
static void mapped_up_to(long region, long end)
{
	if (end > region_pages[region])
		region_pages[region] = end;
}

struct op {
	long r, i, n, val, wp, r2, i2, newn, kb;
	char kind[24], prot[8], mode[12];
};
static char *start_of(const struct op *op) { return page_at(op->r, op->i); }
static size_t length_of(const struct op *op) { return op->n * page_size; }

static int op_map(struct op *op)
{
	int flags = MAP_FIXED_NOREPLACE, fd = -1;
	flags |= strstr(op->kind, "shared") ? MAP_SHARED : MAP_PRIVATE;
	if (!strncmp(op->kind, "hugetlb", 7)) {
		int shift = strstr(op->kind, "64k") ? 16 : 21;
		if (length_of(op) & ((1UL << shift) - 1))
			return -EINVAL;
		flags |= MAP_ANONYMOUS | MAP_HUGETLB | shift << 26;
	} else if (!strncmp(op->kind, "tmpfs", 5)) {
		fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
		if (fd < 0 || ftruncate(fd, length_of(op)))
			return -errno;
	} else {
		flags |= MAP_ANONYMOUS;
	}
	char *at = mmap(page_at(op->r, 0), length_of(op), PROT_READ | PROT_WRITE, flags, fd, 0);
	int rc = at == MAP_FAILED ? -errno : 0;
	if (fd >= 0)
		close(fd);
	if (!rc)
		mapped_up_to(op->r, op->n);
	return rc;
}
static int op_remap(struct op *op)
{
	char *at = mmap(start_of(op), length_of(op), PROT_READ | PROT_WRITE,
			MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	mapped_up_to(op->r, op->i + op->n);
	return 0;
}
static int op_munmap(struct op *op) { return failed(munmap(start_of(op), length_of(op))); }
static int move(struct op *op, int flags)
{
	void *at = mremap(start_of(op), length_of(op), length_of(op),
			  MREMAP_MAYMOVE | MREMAP_FIXED | flags, page_at(op->r2, op->i2));
	if (at == MAP_FAILED)
		return -errno;
	mapped_up_to(op->r2, op->i2 + op->n);
	return 0;
}
static int op_mremap(struct op *op) { return move(op, 0); }
static int op_mremap_dontunmap(struct op *op) { return move(op, MOVE_DONTUNMAP); }
static int op_mexpand(struct op *op)
{
	if (mremap(start_of(op), length_of(op), op->newn * page_size, 0) == MAP_FAILED)
		return -errno;
	mapped_up_to(op->r, op->i + op->newn);
	return 0;
}
static int op_mprotect(struct op *op)
{
	int prot = !strcmp(op->prot, "none") ? PROT_NONE
		 : !strcmp(op->prot, "r") ? PROT_READ : PROT_READ | PROT_WRITE;
	return failed(mprotect(start_of(op), length_of(op), prot));
}
static int op_mlock(struct op *op) { return failed(mlock(start_of(op), length_of(op))); }
static int op_munlock(struct op *op) { return failed(munlock(start_of(op), length_of(op))); }

static int access_all(const struct op *op, enum access how)
{
	int rc = 0;
	for (long k = 0; k < op->n && !rc; k++)
		rc = access_page(page_at(op->r, op->i + k), how, op->val);
	return rc;
}
static int op_write(struct op *op) { return access_all(op, STORE); }
static int op_read(struct op *op) { return access_all(op, LOAD); }
static int op_fill(struct op *op) { return access_all(op, FILL); }

/* /proc/self/mem reaches pages through get_user_pages, by force where the task itself may not. */
static int forced(const struct op *op, int store)
{
	int fd = open("/proc/self/mem", O_RDWR), rc = 0;
	uint32_t value = ++stamp;
	if (fd < 0)
		return -errno;
	for (long k = 0; k < op->n && !rc; k++) {
		off_t at = (off_t)(uintptr_t)page_at(op->r, op->i + k);
		ssize_t n = store ? pwrite(fd, &value, 4, at) : pread(fd, &value, 4, at);
		rc = n == 4 ? 0 : -errno;
	}
	close(fd);
	return rc;
}
static int op_memwrite(struct op *op) { return forced(op, 1); }
static int op_memread(struct op *op) { return forced(op, 0); }
static int op_sysread(struct op *op)
{
	int fd = open("/dev/zero", O_RDONLY), rc = 0;
	if (fd < 0)
		return -errno;
	for (long k = 0; k < op->n && !rc; k++)
		rc = read(fd, page_at(op->r, op->i + k), 8) == 8 ? 0 : -errno;
	close(fd);
	return rc;
}

static int advise(const struct op *op, int advice)
{
	return failed(madvise(start_of(op), length_of(op), advice));
}
#define ADVICE(name, number) \
	static int op_##name(struct op *op) { return advise(op, number); }
ADVICE(willneed, MADV_WILLNEED)
ADVICE(dontneed, MADV_DONTNEED)
ADVICE(free, MADV_FREE)
ADVICE(remove, MADV_REMOVE)
ADVICE(dontfork, MADV_DONTFORK)
ADVICE(wipeonfork, MADV_WIPEONFORK)
ADVICE(hugepage, MADV_HUGEPAGE)
ADVICE(nohugepage, MADV_NOHUGEPAGE)
ADVICE(cold, ADV_COLD)
ADVICE(pageout, ADV_PAGEOUT)
ADVICE(populate_read, ADV_POPULATE_READ)
ADVICE(populate_write, ADV_POPULATE_WRITE)
ADVICE(collapse, ADV_COLLAPSE)

/* ---- the child: keeps the mappings that it inherited, and accesses them when told ---- */

static pid_t child;
static int to_child, from_child;
struct order { long region, page, count; int store; };

static void serve_child(int in, int out)
{
	struct order order;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(in, &order, sizeof order) == sizeof order) {
		struct op op = { .r = order.region, .i = order.page, .n = order.count };
		int rc = access_all(&op, order.store ? STORE : LOAD);
		if (write(out, &rc, sizeof rc) != sizeof rc)
			break;
	}
	_exit(0);
}
static int op_cexit(struct op *op)
{
	(void)op;
	if (child) {
		close(to_child);
		close(from_child);
		waitpid(child, NULL, 0);
		child = 0;
	}
	return 0;
}
static int op_fork(struct op *op)
{
	int down[2], up[2];
	op_cexit(op);
	if (pipe(down) || pipe(up))
		return -errno;
	pid_t pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		close(down[1]);
		close(up[0]);
		serve_child(down[0], up[1]);
	}
	close(down[0]);
	close(up[1]);
	child = pid, to_child = down[1], from_child = up[0];
	return 0;
}
static int order_child(const struct op *op, int store)
{
	struct order order = { op->r, op->i, op->n, store };
	int rc;
	if (!child)
		return NO_CHILD;
	if (write(to_child, &order, sizeof order) != sizeof order ||
	    read(from_child, &rc, sizeof rc) != sizeof rc)
		return -EPIPE;
	return rc;
}
static int op_cwrite(struct op *op) { return order_child(op, 1); }
static int op_cread(struct op *op) { return order_child(op, 0); }

/* ---- /proc, /sys, swap, userfaultfd ---- */

static int op_clear(struct op *op) { (void)op; return write_file("/proc/self/clear_refs", "4"); }
static int op_clear1(struct op *op) { (void)op; return write_file("/proc/self/clear_refs", "1"); }
static int op_cclear(struct op *op)
{
	char path[48];
	(void)op;
	if (!child)
		return NO_CHILD;
	snprintf(path, sizeof path, "/proc/%d/clear_refs", child);
	return write_file(path, "4");
}
static int op_swapoff(struct op *op) { (void)op; return failed(swapoff(SWAP_DEVICE)); }
static int op_swapon(struct op *op) { (void)op; return failed(swapon(SWAP_DEVICE, 0)); }
static int op_compact(struct op *op)
{
	(void)op;
	return write_file("/proc/sys/vm/compact_memory", "1");
}
#define KSM "/sys/kernel/mm/ksm/"
static int op_ksm(struct op *op)
{
	int rc = advise(op, MADV_MERGEABLE);
	long scans = read_number(KSM "full_scans");
	if (!rc)
		rc = write_file(KSM "run", "1");
	for (int k = 0; k < 500 && !rc && read_number(KSM "full_scans") < scans + 3; k++)
		usleep(10000);
	write_file(KSM "run", "0");
	return rc;
}
static int op_unmerge(struct op *op)
{
	(void)op;
	int rc = write_file(KSM "run", "2");
	write_file(KSM "run", "0");
	return rc;
}
static int op_thpsplit(struct op *op)
{
	char text[96];
	unsigned long start = (unsigned long)start_of(op);
	snprintf(text, sizeof text, "%d,0x%lx,0x%lx", getpid(), start, start + length_of(op));
	return write_file("/sys/kernel/debug/split_huge_pages", text);
}
#define THP "/sys/kernel/mm/transparent_hugepage/"
static int op_thp(struct op *op) { return write_file(THP "enabled", op->mode); }
static int op_mthp(struct op *op)
{
	char path[96];
	snprintf(path, sizeof path, THP "hugepages-%ldkB/enabled", op->kb);
	return write_file(path, op->mode);
}
static int uffd = -1;
static int op_uffd(struct op *op)
{
	if (uffd < 0) {
		struct uffdio_api api = { .api = UFFD_API,
					  .features = UFFD_WP_UNPOPULATED | UFFD_WP_ASYNC };
		uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		if (uffd < 0)
			return -errno;
		if (ioctl(uffd, UFFDIO_API, &api)) {
			int rc = -errno;
			close(uffd);
			uffd = -1;
			return rc;
		}
	}
	struct uffdio_register request = {
		.range = { (uintptr_t)start_of(op), length_of(op) },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	return failed(ioctl(uffd, UFFDIO_REGISTER, &request));
}
static int op_uwp(struct op *op)
{
	struct uffdio_writeprotect request = {
		.range = { (uintptr_t)start_of(op), length_of(op) },
		.mode = op->wp ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};
	return uffd < 0 ? NO_CHILD : failed(ioctl(uffd, UFFDIO_WRITEPROTECT, &request));
}

/* ---- the language: operands of each verb in their order, one letter each ---- */

struct verb { const char *name, *operands; int (*run)(struct op *); };
static const struct verb verbs[] = {
	{ "map", "rkn", op_map }, { "remap", "rin", op_remap }, { "munmap", "rin", op_munmap },
	{ "mremap", "rinRI", op_mremap }, { "mremap_dontunmap", "rinRI", op_mremap_dontunmap },
	{ "mexpand", "rinN", op_mexpand }, { "mprotect", "rinp", op_mprotect },
	{ "mlock", "rin", op_mlock }, { "munlock", "rin", op_munlock },
	{ "write", "rin", op_write }, { "read", "rin", op_read }, { "fill", "rinv", op_fill },
	{ "memwrite", "rin", op_memwrite }, { "memread", "rin", op_memread },
	{ "sysread", "rin", op_sysread }, { "willneed", "rin", op_willneed },
	{ "dontneed", "rin", op_dontneed }, { "free", "rin", op_free },
	{ "remove", "rin", op_remove }, { "dontfork", "rin", op_dontfork },
	{ "wipeonfork", "rin", op_wipeonfork }, { "hugepage", "rin", op_hugepage },
	{ "nohugepage", "rin", op_nohugepage }, { "cold", "rin", op_cold },
	{ "pageout", "rin", op_pageout }, { "populate_read", "rin", op_populate_read },
	{ "populate_write", "rin", op_populate_write }, { "collapse", "rin", op_collapse },
	{ "fork", "", op_fork }, { "cexit", "", op_cexit }, { "cwrite", "rin", op_cwrite },
	{ "cread", "rin", op_cread }, { "clear", "", op_clear }, { "clear1", "", op_clear1 },
	{ "cclear", "", op_cclear }, { "swapoff", "", op_swapoff }, { "swapon", "", op_swapon },
	{ "compact", "", op_compact }, { "ksm", "rin", op_ksm }, { "unmerge", "", op_unmerge },
	{ "thpsplit", "rin", op_thpsplit }, { "thp", "m", op_thp }, { "mthp", "Km", op_mthp },
	{ "uffd", "rin", op_uffd }, { "uwp", "rinw", op_uwp },
};

struct operand { char letter; const char *key; size_t offset, text; };
#define NUMBER(letter, field) { letter, #field, offsetof(struct op, field), 0 }
#define TEXT(letter, field) { letter, #field, offsetof(struct op, field), sizeof ((struct op *)0)->field }
static const struct operand operands[] = {
	NUMBER('r', r), NUMBER('i', i), NUMBER('n', n), NUMBER('v', val), NUMBER('w', wp),
	NUMBER('R', r2), NUMBER('I', i2), NUMBER('N', newn), NUMBER('K', kb),
	TEXT('k', kind), TEXT('p', prot), TEXT('m', mode),
};
static const struct operand *operand_of(char letter)
{
	const struct operand *found = operands;
	while (found->letter != letter)
		found++;
	return found;
}

/* Parses the operands into op and writes the operation as JSON, less its result and end. */
static int parse(const struct verb *verb, char *rest, struct op *op, char *json, size_t size)
{
	size_t len = snprintf(json, size, "{\"op\":\"%s\"", verb->name);
	for (const char *letter = verb->operands; *letter; letter++) {
		const struct operand *operand = operand_of(*letter);
		char *word = strsep(&rest, " ");
		void *field = (char *)op + operand->offset;
		if (!word)
			return -1;
		if (operand->text) {
			snprintf(field, operand->text, "%s", word);
			len += snprintf(json + len, size - len, ",\"%s\":\"%s\"", operand->key,
					(char *)field);
		} else {
			*(long *)field = atol(word);
			len += snprintf(json + len, size - len, ",\"%s\":%ld", operand->key,
					*(long *)field);
		}
	}
	return op->r < 0 || op->r >= REGIONS || op->r2 < 0 || op->r2 >= REGIONS ? -1 : 0;
}

/* ---- snapshots ---- */

static void say_bits(const char *name, const uint64_t *entries, long n, int bit, int always)
{
	int any = always;
	for (long k = 0; k < n && !any; k++)
		any = entries[k] >> bit & 1;
	if (!any)
		return;
	say_snap("\"%s\":\"", name);
	if (report->snaps_len + n < sizeof report->snaps)
		for (long k = 0; k < n; k++)
			report->snaps[report->snaps_len++] = '0' + (entries[k] >> bit & 1);
	say_snap("\",");
}

/* Where PAGEMAP_SCAN's soft-dirty says something else than pagemap's bit 55. */
static void say_scan(int pagemap, long region, const uint64_t *entries, long n)
{
	static struct scan_range ranges[2048];
	static uint64_t scanned[1 << 18];
	unsigned long base = (unsigned long)page_at(region, 0);
	struct scan_request request = {
		.size = sizeof request, .start = base, .end = base + n * page_size,
		.vec = (uintptr_t)ranges, .vec_len = 2048,
		.all_of = SCAN_SOFT_DIRTY, .wanted = SCAN_SOFT_DIRTY,
	};
	int found = ioctl(pagemap, SCAN_IOCTL, &request), differs = 0;
	say_snap("\"scan_ok\":%d,", found >= 0);
	if (found < 0)
		return;
	memset(scanned, 0, n * sizeof *scanned);
	for (int k = 0; k < found; k++)
		for (uint64_t at = ranges[k].start; at < ranges[k].end; at += page_size)
			scanned[(at - base) / page_size] = 1;
	for (long k = 0; k < n && !differs; k++)
		differs = scanned[k] != (entries[k] >> 55 & 1);
	if (differs)
		say_bits("scan_soft_dirty", scanned, n, 0, 1);
}

static void say_vmas(pid_t pid, long region)
{
	char path[48], line[512];
	unsigned long base = (unsigned long)page_at(region, 0), start, end;
	unsigned long limit = base + region_pages[region] * page_size;
	int inside = 0, first = 1;
	snprintf(path, sizeof path, "/proc/%d/smaps", pid);
	FILE *smaps = fopen(path, "r");
	say_snap("\"vmas\":[");
	while (smaps && fgets(line, sizeof line, smaps)) {
		char perms[8];
		if (sscanf(line, "%lx-%lx %7s ", &start, &end, perms) == 3) {
			inside = start >= base && start < limit;
			if (inside)
				say_snap("%s[%ld,%ld,\"%s\"", first ? "" : ",",
					 (long)(start - base) / page_size,
					 (long)(end - base) / page_size, perms);
			first = first && !inside;
		} else if (inside && !strncmp(line, "AnonHugePages:", 14)) {
			say_snap(",%ld", atol(line + 14) * 1024 / page_size);
		} else if (inside && !strncmp(line, "VmFlags:", 8)) {
			say_snap(",\"%s%s%s\"]", strstr(line, " sd") ? "sd" : "",
				 strstr(line, " hg") ? ",hg" : "", strstr(line, " nh") ? ",nh" : "");
			inside = 0;
		}
	}
	if (smaps)
		fclose(smaps);
	say_snap("]");
}

static void snapshot(pid_t pid, int after, const char *who)
{
	char path[48], separator = '{';
	snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	int pagemap = open(path, O_RDONLY);
	say_snap("%s{\"after\":%d,\"who\":\"%s\",\"regions\":", report->snaps_len ? "," : "", after, who);
	for (long region = 0; region < REGIONS; region++) {
		long n = region_pages[region];
		if (!n)
			continue;
		uint64_t *entries = calloc(n, sizeof *entries);
		off_t at = (unsigned long)page_at(region, 0) / page_size * sizeof *entries;
		ssize_t want = n * sizeof *entries;
		if (pread(pagemap, entries, want, at) != want)
			say_snap("\"pagemap cannot be read\"");
		say_snap("%c\"%ld\":{", separator, region);
		separator = ',';
		say_bits("present", entries, n, 63, 1);
		say_bits("swap", entries, n, 62, 1);
		say_bits("soft_dirty", entries, n, 55, 1);
		say_bits("file", entries, n, 61, 0);
		say_bits("uffd_wp", entries, n, 57, 0);
		say_scan(pagemap, region, entries, n);
		say_vmas(pid, region);
		say_snap("}");
		free(entries);
	}
	say_snap("%s}", separator == '{' ? "{}" : "}");
	if (pagemap >= 0)
		close(pagemap);
}

/* ---- one scenario ---- */

static void scenario(char lines[][LINE], int count)
{
	struct sigaction action = { .sa_handler = fault_handler, .sa_flags = SA_NODEFER };
	int done = 0;
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (int k = 0; k < count; k++) {
		char *rest = lines[k], *word = strsep(&rest, " ");
		if (!strcmp(word, "snap")) {
			snapshot(getpid(), done - 1, "self");
			continue;
		}
		if (!strcmp(word, "csnap")) {
			if (child)
				snapshot(child, done - 1, "child");
			continue;
		}
		const struct verb *verb = NULL;
		for (size_t v = 0; v < sizeof verbs / sizeof *verbs; v++)
			if (!strcmp(word, verbs[v].name))
				verb = &verbs[v];
		struct op op = { 0 };
		if (!verb || parse(verb, rest, &op, report->pending, sizeof report->pending)) {
			say_op("%s{\"op\":\"bad line\",\"kind\":\"%s\",\"rc\":-1}", done ? "," : "", word);
			break;
		}
		int rc = verb->run(&op);
		say_op("%s%s,\"rc\":%d}", done ? "," : "", report->pending, rc);
		report->pending[0] = 0;
		done++;
	}
	op_cexit(NULL);
}

static void put(const char *text, size_t size)
{
	while (size) {
		ssize_t n = write(1, text, size);
		if (n <= 0)
			return;
		text += n;
		size -= n;
	}
}

static void quiet_the_machine(void)
{
	static const char *sizes[] = { "16", "32", "64", "128", "256", "512", "1024" };
	swapon(SWAP_DEVICE, 0);
	write_file(KSM "run", "0");
	write_file(THP "enabled", "madvise");
	for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
		char path[96];
		snprintf(path, sizeof path, THP "hugepages-%skB/enabled", sizes[k]);
		write_file(path, "never");
	}
}

static void run(const char *name, int seconds, char lines[][LINE], int count)
{
	char head[512];
	report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	pid_t pid = fork();
	if (!pid) {
		alarm(seconds);
		scenario(lines, count);
		_exit(0);
	}
	int status = 0;
	waitpid(pid, &status, 0);
	size_t n = snprintf(head, sizeof head,
		"@@T {\"name\":\"%s\",\"arch\":\"%s\",\"kernel\":\"%s\",\"page_size\":%ld,",
		name, machine.machine, machine.release, page_size);
	put(head, n);
	if (status) {
		n = snprintf(head, sizeof head, "\"killed\":%d,", status);
		put(head, n);
		if (report->pending[0]) {
			n = snprintf(head, sizeof head, "\"hung\":%s,\"rc\":0},", report->pending);
			put(head, n);
		}
	}
	put("\"ops\":[", 7);
	put(report->ops, report->ops_len);
	put("],\"snaps\":[", 11);
	put(report->snaps, report->snaps_len);
	put("]}\n", 3);
	munmap(report, sizeof *report);
	quiet_the_machine();
}

/* ---- the machine ---- */

static void load_modules(void)
{
	FILE *order = fopen("/modules/order", "r");
	char name[128], path[160];
	while (order && fscanf(order, "%127s", name) == 1) {
		snprintf(path, sizeof path, "/modules/%s", name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			printf("@@note cannot load %s: %s\n", name, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	if (order)
		fclose(order);
}

static int make_swap(void)
{
	const unsigned long bytes = 256UL << 20;
	char size[24], *header = calloc(1, page_size);
	uint32_t *fields = (uint32_t *)(header + 1024);
	snprintf(size, sizeof size, "%lu", bytes);
	write_file("/sys/block/zram0/disksize", size);
	fields[0] = 1;                                  /* version */
	fields[1] = bytes / page_size - 1;              /* last page */
	memcpy(header + page_size - 10, "SWAPSPACE2", 10);
	int fd = open(SWAP_DEVICE, O_WRONLY | O_CLOEXEC);
	int ok = fd >= 0 && write(fd, header, page_size) == page_size && !fsync(fd);
	if (fd >= 0)
		close(fd);
	free(header);
	return ok && !swapon(SWAP_DEVICE, 0);
}

static void set_up(void)
{
	struct termios raw;
	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755), mkdir("/tmp", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	if (!tcgetattr(0, &raw)) {
		cfmakeraw(&raw);
		tcsetattr(0, TCSANOW, &raw);
	}
	load_modules();
	/* From here on the console belongs to the answers, and nothing moves pages behind our back. */
	write_file("/proc/sys/kernel/printk", "1");
	write_file("/proc/sys/vm/nr_hugepages", "8");
	write_file("/sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages", "32");
	write_file(THP "khugepaged/scan_sleep_millisecs", "1000000000");
	write_file(KSM "sleep_millisecs", "5");
	write_file(KSM "pages_to_scan", "4000");
}

static char *next_line(char *line, size_t size)
{
	if (!fgets(line, size, stdin))
		return NULL;
	line[strcspn(line, "\r\n")] = 0;
	return line;
}

int main(void)
{
	static char lines[MAX_LINES][LINE];
	char line[LINE], name[LINE];
	int seconds;
	setvbuf(stdout, NULL, _IOLBF, 0);
	page_size = sysconf(_SC_PAGESIZE);
	uname(&machine);
	set_up();
	int swap = make_swap();
	quiet_the_machine();
	printf("@@READY {\"arch\":\"%s\",\"kernel\":\"%s\",\"page_size\":%ld,\"swap\":%d}\n",
	       machine.machine, machine.release, page_size, swap);
	while (next_line(line, sizeof line) && strcmp(line, "quit")) {
		if (sscanf(line, "run %d %159s", &seconds, name) != 2)
			continue;
		int count = 0;
		while (next_line(line, sizeof line) && strcmp(line, "end"))
			if (count < MAX_LINES)
				strcpy(lines[count++], line);
		fflush(stdout);
		run(name, seconds, lines, count);
	}
	sync();
	reboot(RB_POWER_OFF);
	return 0;
}
