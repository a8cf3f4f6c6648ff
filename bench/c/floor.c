/* The floor: a relay that does no more than must be done. One process, epoll: read from the leg,
   find the frames, mix if asked to, mask with a fresh mask, write to the WebSocket connection that it
   has opened for the leg; with --voice also read what the server sends, and write each message of it
   to the leg, as it comes. With --join a fork has two legs, whose UUIDs differ in the last bit alone, and
   each frame of one is mixed with the next of the other. No retries, no backlog, no limits, no pace, no
   statistics.

   Takes what every relay of the benchmark takes: --url, --ca, --mix, --join; prints {"port": N}. */
#define _GNU_SOURCE
#include "common.h"
#include "websocket.h"
#include "wire.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER_BYTES 65536
#define MESSAGE_HEADER 3
#define KIND_UUID 0x01
#define KIND_SLIN 0x10
#define UUID_BYTES 16
#define MOST_HELD 8
#define MAX_FRAME_HEADER 8

/* What has come and is no whole message yet. */
struct input {
    size_t filled;
    unsigned char buffer[BUFFER_BYTES];
};

/* Frames that wait for those of the other leg. */
struct queue {
    size_t first, count;
    unsigned char frames[MOST_HELD][FRAME_BYTES];
};

struct leg {
    int fd;
    int has_sink;
    struct wire sink;
    unsigned char uuid[UUID_BYTES];
    struct leg *other;     /* of the same fork; NULL: it has not come, or is gone */
    struct leg *next;      /* of those that have no other yet */
    struct queue *held;
    struct input *spoken;  /* by the server; NULL: it is not listened to */
    struct input heard;    /* from the leg; last, so that it need not be zeroed */
};

static int epoll;
static int port;
static int mixes;
static int joins;
static struct leg *alone;
static int listens;
static struct tls_context *tls;

/* An event's data: 0, the listener; else a leg, with the lowest bit set for its sink. */
#define OF_SINK(leg) ((leg) | 1)
#define IS_OF_SINK(data) ((data) & 1)
#define LEG(data) ((struct leg *)(uintptr_t)((data) & ~(uint64_t)1))

static void watch(int fd, uint64_t data)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

/* Masks are drawn in blocks, since each draw is a system call. */
static void fresh_mask(unsigned char mask[4])
{
    static unsigned char block[4096];
    static size_t used = sizeof block;
    if (used == sizeof block) {
        if (getrandom(block, sizeof block, 0) != (ssize_t)sizeof block)
            die("getrandom: %s", strerror(errno));
        used = 0;
    }
    memcpy(mask, block + used, 4);
    used += 4;
}

static int send_frame(struct leg *leg, int opcode, const unsigned char *payload, size_t count)
{
    unsigned char frame[MAX_FRAME_HEADER + BUFFER_BYTES];
    size_t at = 2;
    frame[0] = (unsigned char)(0x80 | opcode);
    if (count < 126) {
        frame[1] = (unsigned char)(0x80 | count);
    } else {
        frame[1] = 0x80 | 126;
        frame[at++] = (unsigned char)(count >> 8);
        frame[at++] = (unsigned char)count;
    }
    fresh_mask(frame + at);
    apply_mask(frame + at + 4, payload, count, frame + at);
    return wire_write(&leg->sink, frame, at + 4 + count);
}

static size_t mix(unsigned char *mono, const unsigned char *pairs, size_t count)
{
    int16_t sides[BUFFER_BYTES / 2], sums[BUFFER_BYTES / 4];
    memcpy(sides, pairs, count);
    for (size_t i = 0; i < count / 4; i++) {
        int sum = sides[2 * i] + sides[2 * i + 1];
        sums[i] = (int16_t)(sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum);
    }
    memcpy(mono, sums, count / 2);
    return count / 2;
}

/* Done at once, before there is audio: the sink answers quickly, and the setup is not measured. */
static void open_sink(struct leg *leg)
{
    char reply[1024];
    size_t filled = 0;
    char request[256];
    leg->sink.fd = connect_to(port);
    if (tls != NULL)
        wire_connect_tls(&leg->sink, tls);
    int length = snprintf(request, sizeof request,
                          "GET / HTTP/1.1\r\nHost: localhost:%d\r\nUpgrade: websocket\r\n"
                          "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                          port);
    wire_write(&leg->sink, request, (size_t)length);
    do {
        ssize_t done = wire_read(&leg->sink, reply + filled, sizeof reply - 1 - filled);
        if (done <= 0)
            die("the server did not upgrade");
        filled += (size_t)done;
        reply[filled] = 0;
    } while (strstr(reply, "\r\n\r\n") == NULL);
    if (strstr(reply, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") == NULL)
        die("the server answered: %s", reply);
    non_blocking(leg->sink.fd);
    leg->has_sink = 1;
    if (listens)
        watch(leg->sink.fd, OF_SINK((uintptr_t)leg));
}

static void write_to_leg(const struct leg *leg, const unsigned char *samples, size_t count)
{
    unsigned char message[MESSAGE_HEADER + BUFFER_BYTES];
    message[0] = KIND_SLIN;
    message[1] = (unsigned char)(count >> 8);
    message[2] = (unsigned char)count;
    memcpy(message + MESSAGE_HEADER, samples, count);
    if (write_all(leg->fd, message, MESSAGE_HEADER + count))
        die("the leg takes no audio");
}

static void consume(struct input *input, size_t count)
{
    input->filled -= count;
    if (count > 0 && input->filled > 0)
        memmove(input->buffer, input->buffer + count, input->filled);
}

static void on_spoken(struct leg *leg)
{
    size_t at;
    struct header header;
    struct input *spoken = leg->spoken;
    if (spoken == NULL) {
        spoken = leg->spoken = malloc(sizeof *spoken);
        if (spoken == NULL)
            die("no memory");
        spoken->filled = 0;
    }
    do {
        ssize_t done = wire_read(&leg->sink, spoken->buffer + spoken->filled,
                                 BUFFER_BYTES - spoken->filled);
        if (done <= 0) {  /* the leg is relayed on, though nobody takes its frames */
            if (done == WIRE_GONE)
                epoll_ctl(epoll, EPOLL_CTL_DEL, leg->sink.fd, NULL);
            return;
        }
        spoken->filled += (size_t)done;
        at = 0;
        while (read_header(spoken->buffer + at, spoken->filled - at, &header)) {
            size_t whole = header.header_bytes + (size_t)header.payload_bytes;
            if (spoken->filled - at < whole)
                break;
            if (header.opcode == BINARY)
                write_to_leg(leg, spoken->buffer + at + header.header_bytes,
                             (size_t)header.payload_bytes);
            at += whole;
        }
        consume(spoken, at);
    } while (wire_holds_more(&leg->sink));
}

/* Find the leg of the same fork, or wait for it; the first has the connection to the sink. */
static void find_other(struct leg *leg, const unsigned char *uuid)
{
    memcpy(leg->uuid, uuid, UUID_BYTES);
    leg->held = calloc(1, sizeof *leg->held);
    if (leg->held == NULL)
        die("no memory");
    for (struct leg **at = &alone; *at != NULL; at = &(*at)->next) {
        struct leg *one = *at;
        if (memcmp(one->uuid, uuid, UUID_BYTES - 1) != 0 ||
            (one->uuid[UUID_BYTES - 1] ^ uuid[UUID_BYTES - 1]) != 1)
            continue;
        *at = one->next;
        one->other = leg;
        leg->other = one;
        return;
    }
    leg->next = alone;
    alone = leg;
    open_sink(leg);
}

static int join(struct leg *leg, const unsigned char *frame)
{
    int16_t ours[FRAME_BYTES / 2], others[FRAME_BYTES / 2];
    struct queue *queue = leg->other != NULL ? leg->other->held : NULL;
    if (queue == NULL || queue->count == 0) {
        queue = leg->held;
        if (queue->count == MOST_HELD)
            die("a leg is %d frames ahead of the other", MOST_HELD);
        memcpy(queue->frames[(queue->first + queue->count++) % MOST_HELD], frame, FRAME_BYTES);
        return 0;
    }
    memcpy(ours, frame, sizeof ours);
    memcpy(others, queue->frames[queue->first], sizeof others);
    queue->first = (queue->first + 1) % MOST_HELD;
    queue->count--;
    for (size_t i = 0; i < FRAME_BYTES / 2; i++) {
        int sum = ours[i] + others[i];
        ours[i] = (int16_t)(sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum);
    }
    return send_frame(leg->has_sink ? leg : leg->other, BINARY, (unsigned char *)ours, sizeof ours);
}

static int on_message(struct leg *leg, int kind, const unsigned char *payload, size_t count)
{
    static unsigned char mono[BUFFER_BYTES];
    if (kind == KIND_UUID && joins && count == UUID_BYTES)
        find_other(leg, payload);
    else if (kind == KIND_UUID)
        open_sink(leg);
    if (kind == KIND_SLIN && leg->held != NULL)
        return count == FRAME_BYTES ? join(leg, payload) : 1;
    if (kind != KIND_SLIN || !leg->has_sink)
        return 0;
    if (mixes) {
        count = mix(mono, payload, count);
        payload = mono;
    }
    return send_frame(leg, BINARY, payload, count);
}

static void drop(struct leg *leg)
{
    static const unsigned char normal[] = {1000 >> 8, 1000 & 255};
    if (leg->has_sink) {
        send_frame(leg, CLOSE, normal, sizeof normal);
        wire_close(&leg->sink);
    }
    for (struct leg **at = &alone; *at != NULL; at = &(*at)->next) {
        if (*at == leg) {
            *at = leg->next;
            break;
        }
    }
    if (leg->other != NULL)
        leg->other->other = NULL;
    close(leg->fd);
    free(leg->held);
    free(leg->spoken);
    free(leg);
}

static void on_readable(struct leg *leg)
{
    size_t at = 0;
    struct input *heard = &leg->heard;
    ssize_t done = recv(leg->fd, heard->buffer + heard->filled, BUFFER_BYTES - heard->filled, 0);
    if (done < 0 && errno == EAGAIN)
        return;
    if (done <= 0) {
        drop(leg);
        return;
    }
    heard->filled += (size_t)done;
    while (heard->filled - at >= MESSAGE_HEADER) {
        const unsigned char *message = heard->buffer + at;
        size_t count = (size_t)message[1] << 8 | message[2];
        if (heard->filled - at < MESSAGE_HEADER + count)
            break;
        if (on_message(leg, message[0], message + MESSAGE_HEADER, count)) {
            drop(leg);
            return;
        }
        at += MESSAGE_HEADER + count;
    }
    consume(heard, at);
}

static void accept_all(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct leg *leg = malloc(sizeof *leg);
        if (leg == NULL)
            die("no memory");
        memset(leg, 0, offsetof(struct leg, heard.buffer));
        leg->fd = fd;
        watch(fd, (uintptr_t)leg);
    }
}

static void serve(int listener)
{
    struct epoll_event events[256];
    epoll = epoll_create1(0);
    watch(listener, 0);
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {  /* no event of a leg's sink may follow its end */
            if (IS_OF_SINK(events[i].data.u64))
                on_spoken(LEG(events[i].data.u64));
        }
        for (int i = 0; i < count; i++) {
            if (events[i].data.u64 == 0)
                accept_all(listener);
            else if (!IS_OF_SINK(events[i].data.u64))
                on_readable(LEG(events[i].data.u64));
        }
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"url", required_argument, NULL, 'u'},
                                            {"ca", required_argument, NULL, 'c'},
                                            {"mix", no_argument, NULL, 'm'},
                                            {"join", no_argument, NULL, 'j'},
                                            {"voice", no_argument, NULL, 'v'},
                                            {NULL, 0, NULL, 0}};
    const char *url = "", *ca = NULL;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'u': url = optarg; break;
        case 'c': ca = optarg; break;
        case 'm': mixes = 1; break;
        case 'j': joins = 1; break;
        case 'v': listens = 1; break;
        default: return 2;
        }
    }
    const char *colon = strrchr(url, ':');
    if (colon == NULL || (port = atoi(colon + 1)) == 0)
        die("--url ws://localhost:PORT or wss://localhost:PORT");
    if (strncmp(url, "wss:", 4) == 0)
        tls = tls_client(ca == NULL ? "" : ca);
    signal(SIGPIPE, SIG_IGN);
    lift_file_limit();
    serve(listen_and_tell());
}
