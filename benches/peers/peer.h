/* What the peers in C share: the arguments of peer.py, a clock, a count to wait for, the report. */
#ifndef PEER_H
#define PEER_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOST "127.0.0.1"
#define TOPIC "glec/dtg/DTG-BENCH/alerts"
#define WARM_UP_TOPIC "bench/warm-up"
#define MARK_TOPIC "bench/mark"
#define PAYLOAD_BYTES 300
#define WARM_UP_MESSAGES 1000
#define TIMEOUT_S 120

struct job {
    int port, qos, count, window;
    char *payloads;
};

static void fail(const char *what, int code)
{
    fprintf(stderr, "%s (%d)\n", what, code);
    exit(1);
}

static struct job read_job(int argc, char **argv)
{
    struct job job;
    if (argc != 7 || strcmp(argv[1], "publish"))
        fail("usage: publish PORT QOS COUNT WINDOW PAYLOADS", 0);
    job.port = atoi(argv[2]);
    job.qos = atoi(argv[3]);
    job.count = atoi(argv[4]);
    job.window = atoi(argv[5]);
    size_t size = (size_t)job.count * PAYLOAD_BYTES;
    job.payloads = malloc(size);
    FILE *file = fopen(argv[6], "rb");
    if (!job.payloads || !file || fread(job.payloads, 1, size, file) != size)
        fail("cannot read the payloads", 0);
    fclose(file);
    return job;
}

static int warm_up_count(const struct job *job)
{
    return job->count < WARM_UP_MESSAGES ? job->count : WARM_UP_MESSAGES;
}

/* Finished messages, counted by the client's thread and waited for by main's. */
static pthread_mutex_t finished_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t finished_changed = PTHREAD_COND_INITIALIZER;
static int finished, finished_wanted;

static void count_finished(void)
{
    pthread_mutex_lock(&finished_lock);
    if (++finished == finished_wanted)
        pthread_cond_signal(&finished_changed);
    pthread_mutex_unlock(&finished_lock);
}

static void expect_finished(int wanted)
{
    pthread_mutex_lock(&finished_lock);
    finished = 0;
    finished_wanted = wanted;
    pthread_mutex_unlock(&finished_lock);
}

static void wait_finished(void)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += TIMEOUT_S;
    pthread_mutex_lock(&finished_lock);
    while (finished < finished_wanted)
        if (pthread_cond_timedwait(&finished_changed, &finished_lock, &deadline))
            fail("acknowledgements are missing", finished_wanted - finished);
    pthread_mutex_unlock(&finished_lock);
}

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void report(const char *version, double start_s, double cpu_start_s)
{
    double wall_s = seconds_of(CLOCK_MONOTONIC) - start_s;
    double cpu_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_start_s;
    printf("{\"version\": \"%s\", \"wall_s\": %.9f, \"cpu_s\": %.9f}\n", version, wall_s, cpu_s);
}

#endif
