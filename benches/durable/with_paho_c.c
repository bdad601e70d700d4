/* Paho C, asynchronous, with its default persistence, which is files: what publisher.py describes, in C. */
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <MQTTAsync.h>

#define TOPIC "bench/durable"
#define PAYLOAD_BYTES 300
#define PACE_NS 2000000
#define AHEAD_MAX 1000

static sem_t room, connected;

static void fail(const char *what, int code)
{
    fprintf(stderr, "%s (%d)\n", what, code);
    exit(1);
}

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static long written_bytes(void)
{
    char line[128];
    long bytes = 0;
    FILE *file = fopen("/proc/self/io", "r");
    while (file && fgets(line, sizeof line, file))
        sscanf(line, "write_bytes: %ld", &bytes);
    if (file)
        fclose(file);
    return bytes;
}

static void on_connected(void *context, char *cause)
{
    (void)context;
    (void)cause;
    sem_post(&connected);
}

static void on_sent(void *context, MQTTAsync_successData *response)
{
    (void)context;
    (void)response;
    sem_post(&room);
}

static void publish(MQTTAsync client, long number, int qos, int is_rate)
{
    char payload[PAYLOAD_BYTES + 1];
    MQTTAsync_responseOptions options = MQTTAsync_responseOptions_initializer;
    int head = snprintf(payload, sizeof payload, "{\"number\": %ld, \"note\": \"", number);
    memset(payload + head, 'x', (size_t)(PAYLOAD_BYTES - head));
    memcpy(payload + PAYLOAD_BYTES - 2, "\"}", 3);
    options.onSuccess = on_sent;
    if (is_rate)
        sem_wait(&room);
    for (;;) {
        int code = MQTTAsync_send(client, TOPIC, PAYLOAD_BYTES, payload, qos, 0, &options);
        if (code == MQTTASYNC_SUCCESS)
            return;
        if (is_rate)
            fail("MQTTAsync_send", code);
        usleep(20000);
    }
}

int main(int argc, char **argv)
{
    if (argc != 7)
        fail("usage: rate|life PORT DIRECTORY QOS FIRST COUNT", argc);
    int is_rate = !strcmp(argv[1], "rate"), qos = atoi(argv[4]), code;
    long first = atol(argv[5]), count = atol(argv[6]);
    char url[64];
    snprintf(url, sizeof url, "tcp://127.0.0.1:%s", argv[2]);
    sem_init(&room, 0, AHEAD_MAX);
    sem_init(&connected, 0, 0);

    MQTTAsync client;
    MQTTAsync_createOptions create = MQTTAsync_createOptions_initializer;
    create.sendWhileDisconnected = 1;
    create.maxBufferedMessages = 1000000;
    if ((code = MQTTAsync_createWithOptions(&client, url, "durable", MQTTCLIENT_PERSISTENCE_DEFAULT, argv[3], &create)))
        fail("MQTTAsync_create", code);
    MQTTAsync_setConnected(client, NULL, on_connected);
    MQTTAsync_connectOptions options = MQTTAsync_connectOptions_initializer;
    options.cleansession = 0;
    options.automaticReconnect = 1;
    options.minRetryInterval = 1;
    options.maxRetryInterval = 1;
    options.maxInflight = 20;
    if ((code = MQTTAsync_connect(client, &options)))
        fail("MQTTAsync_connect", code);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 5;
    sem_timedwait(&connected, &until);

    if (!is_rate) {
        printf("ready\n");
        fflush(stdout);
        for (long number = first; number < first + count; number++) {
            struct timespec pace = {0, PACE_NS};
            publish(client, number, qos, 0);
            printf("%ld\n", number);
            fflush(stdout);
            nanosleep(&pace, NULL);
        }
        while (getchar() != EOF)
            ;
    } else {
        long written = written_bytes();
        double start_s = seconds_of(CLOCK_MONOTONIC), cpu_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
        for (long number = first; number < first + count; number++)
            publish(client, number, qos, 1);
        double accepted_s = seconds_of(CLOCK_MONOTONIC) - start_s;
        for (int i = 0; i < AHEAD_MAX; i++)
            sem_wait(&room);
        double wall_s = seconds_of(CLOCK_MONOTONIC) - start_s;
        cpu_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_s;
        printf("{\"wall_s\": %f, \"accepted_s\": %f, \"cpu_s\": %f, \"write_bytes\": %ld}\n", wall_s, accepted_s, cpu_s,
               written_bytes() - written);
    }
    MQTTAsync_destroy(&client);
    return 0;
}
