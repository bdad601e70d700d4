/* In a broker's place: a server that acknowledges whatever is published at once, and keeps nothing. One client at a time.

   sink

   Prints its port, and serves until it is ended. MQTT 3.1.1; SUBSCRIBE is granted QoS 0, and nothing is ever sent. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RECEIVE_BYTES = 1 << 20, ANSWER_BYTES_MAX = 8 };

static uint8_t received[RECEIVE_BYTES];
static uint8_t answers[RECEIVE_BYTES * 2 + ANSWER_BYTES_MAX];

/* Bytes of a whole packet at the front of `size`, and where its body begins; 0 where it is not whole. */
static size_t packet_bytes(const uint8_t *bytes, size_t size, size_t *body) {
    size_t length = 0, at = 1;
    for (unsigned shift = 0; at < size && shift < 28; shift += 7) {
        length |= (size_t)(bytes[at] & 0x7f) << shift;
        if (!(bytes[at++] & 0x80)) {
            *body = at;
            return at + length <= size ? at + length : 0;
        }
    }
    return 0;
}

static size_t answer(const uint8_t *packet, size_t body, uint8_t *to) {
    const unsigned qos = packet[0] >> 1 & 3;
    size_t id_at = body;
    switch (packet[0] >> 4) {
    case 1:
        memcpy(to, "\x20\2\0\0", 4);
        return 4;
    case 3:
        if (!qos) return 0;
        id_at += 2 + ((size_t)packet[body] << 8 | packet[body + 1]);
        to[0] = qos == 1 ? 0x40 : 0x50;
        break;
    case 6:
        to[0] = 0x70;
        break;
    case 8:
        memcpy(to, "\x90\3", 2);
        memcpy(to + 2, packet + body, 2);
        to[4] = 0;
        return 5;
    case 12:
        memcpy(to, "\xd0\0", 2);
        return 2;
    default:
        return 0;
    }
    to[1] = 2;
    memcpy(to + 2, packet + id_at, 2);
    return 4;
}

static void serve(int client) {
    size_t there = 0;
    for (;;) {
        const ssize_t got = recv(client, received + there, sizeof received - there, 0);
        if (got <= 0) return;
        there += (size_t)got;
        size_t at = 0, put = 0, body = 0, size;
        while ((size = packet_bytes(received + at, there - at, &body))) {
            put += answer(received + at, body, answers + put);
            at += size;
        }
        there -= at;
        memmove(received, received + at, there);
        for (size_t gone = 0; gone < put;) {
            const ssize_t sent = send(client, answers + gone, put - gone, MSG_NOSIGNAL);
            if (sent <= 0) return;
            gone += (size_t)sent;
        }
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    const int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 8)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        const int client = accept(listener, NULL, NULL);
        if (client < 0) return 1;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        serve(client);
        close(client);
    }
}
