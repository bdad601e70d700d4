/* Preloaded into a contender: counts its syncs, and passes them on. The figure is read through `glec_sync_count`. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>

static atomic_long count;

long glec_sync_count(void) { return atomic_load(&count); }

typedef int (*sync_fn)(int);

int fsync(int descriptor)
{
    static sync_fn real;
    if (!real)
        real = (sync_fn)dlsym(RTLD_NEXT, "fsync");
    atomic_fetch_add(&count, 1);
    return real(descriptor);
}

int fdatasync(int descriptor)
{
    static sync_fn real;
    if (!real)
        real = (sync_fn)dlsym(RTLD_NEXT, "fdatasync");
    atomic_fetch_add(&count, 1);
    return real(descriptor);
}
