/* Paho C, asynchronous, in memory: MQTTAsync_send() from the main thread, at most a window of it unacknowledged.
 *
 * The bound is the program's: with more waiting inside the library its searches for a free packet id grow with them.
 */
#include "peer.h"

#include <semaphore.h>

#include <MQTTAsync.h>

static sem_t room;

static void on_connected(void *context, MQTTAsync_successData *response)
{
    (void)context;
    (void)response;
    count_finished();
}

static void on_sent(void *context, MQTTAsync_successData *response)
{
    (void)context;
    (void)response;
    sem_post(&room);
    count_finished();
}

static void on_failure(void *context, MQTTAsync_failureData *response)
{
    (void)context;
    fail("an operation failed", response ? response->code : 0);
}

static void publish_one(MQTTAsync client, const char *topic, int size, const char *payload, int qos)
{
    MQTTAsync_responseOptions options = MQTTAsync_responseOptions_initializer;
    options.onSuccess = on_sent;
    options.onFailure = on_failure;
    sem_wait(&room);
    int code = MQTTAsync_send(client, topic, size, payload, qos, 0, &options);
    if (code != MQTTASYNC_SUCCESS)
        fail("MQTTAsync_send", code);
}

static void publish_all(MQTTAsync client, const struct job *job, const char *topic, int count)
{
    expect_finished(count + (job->qos == 0));
    for (int i = 0; i < count; i++)
        publish_one(client, topic, PAYLOAD_BYTES, job->payloads + (size_t)i * PAYLOAD_BYTES, job->qos);
    if (job->qos == 0)
        publish_one(client, MARK_TOPIC, 0, "", 1);
    wait_finished();
}

static const char *version_of_library(void)
{
    for (MQTTAsync_nameValue *info = MQTTAsync_getVersionInfo(); info->name; info++)
        if (!strcmp(info->name, "Version"))
            return info->value;
    return "";
}

int main(int argc, char **argv)
{
    struct job job = read_job(argc, argv);
    MQTTAsync client;
    MQTTAsync_connectOptions options = MQTTAsync_connectOptions_initializer;
    char url[64];
    int code;

    sem_init(&room, 0, (unsigned)job.window);
    snprintf(url, sizeof url, "tcp://%s:%d", HOST, job.port);
    if ((code = MQTTAsync_create(&client, url, "paho-c", MQTTCLIENT_PERSISTENCE_NONE, NULL)))
        fail("MQTTAsync_create", code);
    options.maxInflight = job.window;
    options.onSuccess = on_connected;
    options.onFailure = on_failure;
    expect_finished(1);
    if ((code = MQTTAsync_connect(client, &options)))
        fail("MQTTAsync_connect", code);
    wait_finished();

    publish_all(client, &job, WARM_UP_TOPIC, warm_up_count(&job));
    double start_s = seconds_of(CLOCK_MONOTONIC), cpu_start_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    publish_all(client, &job, TOPIC, job.count);
    report(version_of_library(), start_s, cpu_start_s);

    MQTTAsync_destroy(&client);
    free(job.payloads);
    return 0;
}
