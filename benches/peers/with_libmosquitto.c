/* libmosquitto: mosquitto_publish() from the main thread, the network in the thread of mosquitto_loop_start(). */
#include "peer.h"

#include <mosquitto.h>

static void on_connect(struct mosquitto *client, void *userdata, int code)
{
    (void)client;
    (void)userdata;
    if (code)
        fail("the broker refused the connection", code);
    count_finished();
}

static void on_publish(struct mosquitto *client, void *userdata, int message_id)
{
    (void)client;
    (void)userdata;
    (void)message_id;
    count_finished();
}

static void publish_one(struct mosquitto *client, const char *topic, int size, const char *payload, int qos)
{
    int code = mosquitto_publish(client, NULL, topic, size, payload, qos, false);
    if (code)
        fail(mosquitto_strerror(code), code);
}

static void publish_all(struct mosquitto *client, const struct job *job, const char *topic, int count)
{
    expect_finished(count + (job->qos == 0));
    for (int i = 0; i < count; i++)
        publish_one(client, topic, PAYLOAD_BYTES, job->payloads + (size_t)i * PAYLOAD_BYTES, job->qos);
    if (job->qos == 0)
        publish_one(client, MARK_TOPIC, 0, NULL, 1);
    wait_finished();
}

int main(int argc, char **argv)
{
    struct job job = read_job(argc, argv);
    char version[32];
    int major, minor, revision, code;

    mosquitto_lib_init();
    struct mosquitto *client = mosquitto_new(NULL, true, NULL);
    if (!client)
        fail("mosquitto_new", 0);
    mosquitto_int_option(client, MOSQ_OPT_SEND_MAXIMUM, job.window);
    mosquitto_connect_callback_set(client, on_connect);
    mosquitto_publish_callback_set(client, on_publish);
    expect_finished(1);
    if ((code = mosquitto_connect(client, HOST, job.port, 60)) || (code = mosquitto_loop_start(client)))
        fail(mosquitto_strerror(code), code);
    wait_finished();

    publish_all(client, &job, WARM_UP_TOPIC, warm_up_count(&job));
    double start_s = seconds_of(CLOCK_MONOTONIC), cpu_start_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    publish_all(client, &job, TOPIC, job.count);
    mosquitto_lib_version(&major, &minor, &revision);
    snprintf(version, sizeof version, "%d.%d.%d", major, minor, revision);
    report(version, start_s, cpu_start_s);

    mosquitto_disconnect(client);
    mosquitto_loop_stop(client, false);
    mosquitto_destroy(client);
    mosquitto_lib_cleanup();
    free(job.payloads);
    return 0;
}
