/* Counts what a process does to the files below one folder, and lets the Nth of these calls go wrong: the process is
 * killed, or the call fails with an errno, or it writes only a part.
 *
 * Preloaded with LD_PRELOAD. Armed by `faults_arm`, which reads the variables below, or when the program starts, if
 * FAULTS_ROOT is set then. Only the process that was armed counts, in all its threads; its children do not.
 *
 *   FAULTS_ROOT     folder, absolute and without links; calls elsewhere are left alone
 *   FAULTS_OPS      kinds that count, with commas: open (for writing), read (other opens), write, sync, rename, unlink,
 *                   symlink, mkdir, truncate, close; all but read and close if not set
 *   FAULTS_FROM     counting begins with the first call whose path contains this text
 *   FAULTS_MATCH    only paths that contain this text count
 *   FAULTS_AT       number of the call that goes wrong, from 1; 0 or not set: none does
 *   FAULTS_TIMES    how many calls go wrong from that one on; 0: all; 1 if not set
 *   FAULTS_DO       kill: SIGKILL before the call; torn: SIGKILL after half of the bytes of a write; short: half of the
 *                   bytes are written; else an errno as a number. close fails after it has closed, as on Linux.
 *   FAULTS_LOG      file that gets a line `number kind path` for each counted call
 *   FAULTS_PROGRAM  at start: arm only a program whose command line contains this text, and leave the variables set for
 *                   its children; without it they are removed, so that children are not armed
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, READ, WRITE, SYNC, RENAME, UNLINK, SYMLINK, MKDIR, TRUNCATE, CLOSE, NUM_OPS };
static const char *const NAMES[NUM_OPS] = {"open",   "read",    "write", "sync",     "rename",
                                           "unlink", "symlink", "mkdir", "truncate", "close"};
static const char *const VARIABLES[] = {"FAULTS_ROOT", "FAULTS_OPS", "FAULTS_FROM", "FAULTS_MATCH", "FAULTS_AT",
                                        "FAULTS_TIMES", "FAULTS_DO", "FAULTS_LOG"};

enum { FINE, FAIL, KILL, TORN, SHORT };

static pid_t armed_pid;
static char root[PATH_MAX], from[NAME_MAX], match[NAME_MAX];
static size_t root_length;
static int counts[NUM_OPS];
static int action, action_errno, log_fd = -1;
static long first, times;
static atomic_long count;
static atomic_int begun;

static void copy_variable(char *to, size_t size, const char *name) {
    const char *value = getenv(name);
    snprintf(to, size, "%s", value ? value : "");
}

static long number_variable(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value && *value ? strtol(value, NULL, 10) : otherwise;
}

static void read_ops(const char *ops) {
    for (int op = 0; op < NUM_OPS; op++) {
        counts[op] = ops ? 0 : op != READ && op != CLOSE;
        for (const char *at = ops; at && (at = strstr(at, NAMES[op])); at++) {
            char before = at == ops ? ',' : at[-1], after = at[strlen(NAMES[op])];
            counts[op] |= before == ',' && (after == ',' || after == '\0');
        }
    }
}

static void read_action(const char *what) {
    action_errno = 0;
    if (!what || !strcmp(what, "kill"))
        action = KILL;
    else if (!strcmp(what, "torn"))
        action = TORN;
    else if (!strcmp(what, "short"))
        action = SHORT;
    else {
        action = FAIL;
        action_errno = atoi(what);
    }
}

/* Begin to count from zero with what the environment says now. */
void faults_arm(void) {
    copy_variable(root, sizeof root, "FAULTS_ROOT");
    copy_variable(from, sizeof from, "FAULTS_FROM");
    copy_variable(match, sizeof match, "FAULTS_MATCH");
    root_length = strlen(root);
    read_ops(getenv("FAULTS_OPS"));
    read_action(getenv("FAULTS_DO"));
    first = number_variable("FAULTS_AT", 0);
    times = number_variable("FAULTS_TIMES", 1);
    const char *log = getenv("FAULTS_LOG");
    if (log_fd >= 0)
        syscall(SYS_close, log_fd);
    /* out of the way: programs look at the lowest numbers, and some close all they know nothing of */
    int fd = log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    log_fd = fd < 0 ? -1 : (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 700);
    if (fd >= 0)
        syscall(SYS_close, fd);
    atomic_store(&count, 0);
    atomic_store(&begun, from[0] == '\0');
    armed_pid = root_length ? getpid() : 0;
}

/* How many calls have been counted. */
long faults_count(void) { return atomic_load(&count); }

static int command_line_contains(const char *text) {
    static char line[65536];
    int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC, 0);
    ssize_t length = fd < 0 ? -1 : (ssize_t)syscall(SYS_read, fd, line, sizeof line - 1);
    if (fd >= 0)
        syscall(SYS_close, fd);
    for (ssize_t i = 0; i < length; i++)
        if (line[i] == '\0')
            line[i] = ' ';
    return length > 0 && strstr(line, text) != NULL;
}

__attribute__((constructor)) static void arm_at_start(void) {
    if (!getenv("FAULTS_ROOT"))
        return;
    const char *program = getenv("FAULTS_PROGRAM");
    if (program) {
        if (command_line_contains(program))
            faults_arm();
        return;
    }
    faults_arm();
    for (size_t i = 0; i < sizeof VARIABLES / sizeof *VARIABLES; i++)
        unsetenv(VARIABLES[i]);
}

/* The absolute path of `name` in the folder `dir_fd`, or of `dir_fd` itself where there is no name. */
static int find_path(char *path, int dir_fd, const char *name) {
    if (name && name[0] == '/')
        return snprintf(path, PATH_MAX, "%s", name);
    char link[64];
    snprintf(link, sizeof link, dir_fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir_fd);
    ssize_t length = (ssize_t)syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    if (name)
        snprintf(path + length, (size_t)(PATH_MAX - length), "/%s", name);
    return 1;
}

static void log_call(long number, int op, const char *path) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, NAMES[op], path);
    syscall(SYS_write, log_fd, line, (size_t)length);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* What is to become of this call. Does not return where it is to be killed before it. */
static int fate(int op, int dir_fd, const char *name) {
    int before = errno;
    if (armed_pid == 0 || !counts[op] || armed_pid != getpid())
        return FINE;
    char path[PATH_MAX];
    int below = find_path(path, dir_fd, name) && !strncmp(path, root, root_length) &&
                (path[root_length] == '/' || path[root_length] == '\0');
    errno = before;
    if (!below)
        return FINE;
    if (!atomic_load(&begun)) {
        if (!strstr(path, from))
            return FINE;
        atomic_store(&begun, 1);
    }
    if (match[0] && !strstr(path, match))
        return FINE;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (log_fd >= 0)
        log_call(number, op, path);
    errno = before;
    if (first == 0 || number < first || (times && number >= first + times))
        return FINE;
    if (action == KILL || (action == TORN && op != WRITE))
        die();
    if (action == FAIL)
        errno = action_errno;
    return action == SHORT && op != WRITE ? FINE : action;
}

static int is_for_writing(int flags) { return (flags & (O_ACCMODE | O_CREAT | O_TRUNC)) != O_RDONLY; }

static int open_at(int dir_fd, const char *name, int flags, mode_t mode) {
    if (fate(is_for_writing(flags) ? OPEN : READ, dir_fd, name) == FAIL)
        return -1;
    return (int)syscall(SYS_openat, dir_fd, name, flags, mode);
}

#define MODE_OF(flags, mode)                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

int open(const char *name, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(AT_FDCWD, name, flags, mode);
}

int openat(int dir_fd, const char *name, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(dir_fd, name, flags, mode);
}

int openat64(int dir_fd, const char *name, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(dir_fd, name, flags, mode);
}

/* std::ofstream, with which kineto writes traces, opens its files so; it writes with write and writev. */
static FILE *open_stream(const char *symbol, const char *name, const char *mode) {
    FILE *(*original)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, symbol);
    if (fate(strpbrk(mode, "wa+") ? OPEN : READ, AT_FDCWD, name) == FAIL)
        return NULL;
    return original(name, mode);
}

FILE *fopen(const char *name, const char *mode) { return open_stream("fopen", name, mode); }

FILE *fopen64(const char *name, const char *mode) { return open_stream("fopen64", name, mode); }

/* How many of `size` bytes this write may take; -1 where it fails. `*dies` is set where it is the last one. */
static ssize_t allowed(int fd, size_t size, int *dies) {
    int what = fate(WRITE, fd, NULL);
    *dies = what == TORN;
    if (what == FAIL)
        return -1;
    return (ssize_t)(what == FINE || size < 2 ? size : size / 2);
}

ssize_t write(int fd, const void *data, size_t size) {
    int dies;
    ssize_t part = allowed(fd, size, &dies);
    ssize_t done = part < 0 ? -1 : (ssize_t)syscall(SYS_write, fd, data, (size_t)part);
    if (dies)
        die();
    return done;
}

static ssize_t write_at(int fd, const void *data, size_t size, off64_t offset) {
    int dies;
    ssize_t part = allowed(fd, size, &dies);
    ssize_t done = part < 0 ? -1 : (ssize_t)syscall(SYS_pwrite64, fd, data, (size_t)part, offset);
    if (dies)
        die();
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return write_at(fd, data, size, offset); }

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return write_at(fd, data, size, offset); }

ssize_t writev(int fd, const struct iovec *parts, int num_parts) {
    int dies, before = errno;
    size_t size = 0;
    for (int i = 0; i < num_parts; i++)
        size += parts[i].iov_len;
    ssize_t part = allowed(fd, size, &dies);
    if (part < 0)
        return -1;
    if ((size_t)part == size)
        return (ssize_t)syscall(SYS_writev, fd, parts, num_parts);
    ssize_t done = 0;
    for (int i = 0; i < num_parts && done < part; i++) {
        size_t left = (size_t)(part - done);
        ssize_t now = (ssize_t)syscall(SYS_write, fd, parts[i].iov_base, left < parts[i].iov_len ? left : parts[i].iov_len);
        if (now < 0)
            break;
        done += now;
    }
    if (dies)
        die();
    errno = before;
    return done;
}

#define UNLESS_IT_FAILS(op, dir_fd, name, call) return fate(op, dir_fd, name) == FAIL ? -1 : (int)(call)

int fsync(int fd) { UNLESS_IT_FAILS(SYNC, fd, NULL, syscall(SYS_fsync, fd)); }

int fdatasync(int fd) { UNLESS_IT_FAILS(SYNC, fd, NULL, syscall(SYS_fdatasync, fd)); }

int ftruncate(int fd, off_t size) { UNLESS_IT_FAILS(TRUNCATE, fd, NULL, syscall(SYS_ftruncate, fd, size)); }

int ftruncate64(int fd, off64_t size) { UNLESS_IT_FAILS(TRUNCATE, fd, NULL, syscall(SYS_ftruncate, fd, size)); }

int rename(const char *from_name, const char *to_name) {
    UNLESS_IT_FAILS(RENAME, AT_FDCWD, to_name, syscall(SYS_renameat2, AT_FDCWD, from_name, AT_FDCWD, to_name, 0));
}

int renameat(int from_fd, const char *from_name, int to_fd, const char *to_name) {
    UNLESS_IT_FAILS(RENAME, to_fd, to_name, syscall(SYS_renameat2, from_fd, from_name, to_fd, to_name, 0));
}

int unlink(const char *name) { UNLESS_IT_FAILS(UNLINK, AT_FDCWD, name, syscall(SYS_unlinkat, AT_FDCWD, name, 0)); }

int rmdir(const char *name) {
    UNLESS_IT_FAILS(UNLINK, AT_FDCWD, name, syscall(SYS_unlinkat, AT_FDCWD, name, AT_REMOVEDIR));
}

int unlinkat(int dir_fd, const char *name, int flags) {
    UNLESS_IT_FAILS(UNLINK, dir_fd, name, syscall(SYS_unlinkat, dir_fd, name, flags));
}

int symlink(const char *target, const char *name) {
    UNLESS_IT_FAILS(SYMLINK, AT_FDCWD, name, syscall(SYS_symlinkat, target, AT_FDCWD, name));
}

int symlinkat(const char *target, int dir_fd, const char *name) {
    UNLESS_IT_FAILS(SYMLINK, dir_fd, name, syscall(SYS_symlinkat, target, dir_fd, name));
}

int mkdir(const char *name, mode_t mode) {
    UNLESS_IT_FAILS(MKDIR, AT_FDCWD, name, syscall(SYS_mkdirat, AT_FDCWD, name, mode));
}

int mkdirat(int dir_fd, const char *name, mode_t mode) {
    UNLESS_IT_FAILS(MKDIR, dir_fd, name, syscall(SYS_mkdirat, dir_fd, name, mode));
}

int close(int fd) {
    int what = fate(CLOSE, fd, NULL), wanted = errno;
    int done = (int)syscall(SYS_close, fd);
    if (what != FAIL)
        return done;
    errno = wanted;
    return -1;
}
