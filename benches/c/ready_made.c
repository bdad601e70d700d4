/* The bound for a durable flush of QoS 1: ready-made packets over TCP, or over TLS with OpenSSL; nothing is kept.

   ready_made PORT FILE PACKET_BYTES COUNT WINDOW [CA]

   FILE has COUNT PUBLISH packets of PACKET_BYTES each, with packet ids from 1 on, which begin anew behind 65,535.
   Prints one JSON object. The wall clock runs from CONNACK to the last PUBACK; CPU covers the whole process. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
static SSL *tls;
#endif

enum { ACK_BYTES = 4, RECEIVE_BYTES = 65536 };
/* While a whole window is in flight: reading at once would wake us, and make the broker write, for each PUBACK. */
static const double FULL_WINDOW_PAUSE_S = 0.002, MIN_PAUSE_S = 0.0001;

static int link_fd;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void send_all(const uint8_t *bytes, size_t size) {
    while (size) {
        ssize_t sent;
#ifdef WITH_TLS
        sent = tls ? SSL_write(tls, bytes, size > (1 << 20) ? 1 << 20 : (int)size) : send(link_fd, bytes, size, 0);
#else
        sent = send(link_fd, bytes, size, 0);
#endif
        if (sent <= 0) fail("send");
        bytes += sent;
        size -= (size_t)sent;
    }
}

/* What is there, at least one byte. */
static size_t receive(uint8_t *bytes, size_t size) {
    ssize_t received;
#ifdef WITH_TLS
    if (tls) {
        size_t all = 0;
        /* A record has one PUBACK; many of them have come with one recv. */
        do {
            received = SSL_read(tls, bytes + all, (int)(size - all));
            if (received <= 0) fail("SSL_read");
            all += (size_t)received;
        } while (all < size && SSL_has_pending(tls));
        return all;
    }
#endif
    received = recv(link_fd, bytes, size, 0);
    if (received <= 0) fail("recv");
    return (size_t)received;
}

static void begin_tls(const char *ca) {
#ifdef WITH_TLS
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    if (!SSL_CTX_load_verify_locations(context, ca, NULL)) fail("the authority");
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, RECEIVE_BYTES);
    SSL_CTX_set_mode(context, SSL_MODE_AUTO_RETRY | SSL_MODE_ENABLE_PARTIAL_WRITE);
    tls = SSL_new(context);
    SSL_set_fd(tls, link_fd);
    if (SSL_connect(tls) != 1) fail("SSL_connect");
#else
    (void)ca;
    fail("made without TLS");
#endif
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    const size_t packet_bytes = strtoul(argv[3], NULL, 10), count = strtoul(argv[4], NULL, 10);
    const size_t window = strtoul(argv[5], NULL, 10);
    int file = open(argv[2], O_RDONLY);
    const uint8_t *packets = mmap(NULL, packet_bytes * count, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (packets == MAP_FAILED) fail("mmap");

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int yes = 1;
    link_fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(link_fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(link_fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (argc > 6) begin_tls(argv[6]);

    static const uint8_t CONNECT[] = "\x10\x11\0\4MQTT\4\2\0\x3c\0\5bench";
    static uint8_t received[RECEIVE_BYTES];
    send_all(CONNECT, sizeof CONNECT - 1);
    if (receive(received, ACK_BYTES) != ACK_BYTES || received[0] != 0x20 || received[3]) fail("CONNACK");

    const double began_s = now_s();
    size_t sent = window < count ? window : count, finished = 0, part = 0;
    send_all(packets, sent * packet_bytes);
    while (finished < count) {
        const double pause_s = FULL_WINDOW_PAUSE_S * (double)(sent - finished) / (double)window;
        if (pause_s > MIN_PAUSE_S) usleep((useconds_t)(pause_s * 1e6));
        if (sent == count) setsockopt(link_fd, IPPROTO_TCP, TCP_QUICKACK, &yes, sizeof yes);
        const size_t there = part + receive(received + part, sizeof received - part);
        size_t at = 0;
        for (; at + ACK_BYTES <= there; at += ACK_BYTES, finished++) {
            const size_t packet_id = (size_t)received[at + 2] << 8 | received[at + 3];
            if (received[at] != 0x40 || packet_id != finished % 65535 + 1) fail("not the next PUBACK");
        }
        part = there - at;
        memmove(received, received + at, part);
        const size_t to = finished + window < count ? finished + window : count;
        send_all(packets + sent * packet_bytes, (to - sent) * packet_bytes);
        sent = to;
    }
    const double wall_s = now_s() - began_s;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    const double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
        + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"wall_s\": %.6f, \"cpu_s\": %.6f}\n", wall_s, cpu_s);
    return 0;
}
