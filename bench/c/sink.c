/* A WebSocket server that checks every frame, or (--unchecked) counts messages of any kind, or (--counted)
   takes each message of audio for a frame: a binary one, or a text as Twilio's `media`. With --echo BYTES
   it sends all audio back, so many bytes or more in a message.

   Prints {"port": N}. On each line on standard input it prints what it has counted so far as one
   line of JSON, and forgets the times that it has measured; at the end of standard input it does
   so once more and exits. With --unchecked it also prints {"first": PATH, "at_ns": T} when the first
   message of a connection comes. */
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
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER_BYTES 65536
#define MAX_NUMBER 100000000
#define LATE_NS FRAME_NS
#define MEDIA "\"event\":\"media\""
/* Rests so long after each turn, so that messages gather: waking for each costs more than reading
   it, and makes its writer pay for the wake. The latency that it measures has this in it. */
#define REST_US 200

struct connection {
    struct wire wire;
    int upgraded;
    int closing;
    int leg;            /* -1: no frame yet */
    uint32_t next;      /* one more than the highest number that came */
    uint64_t *seen;     /* one bit for each number */
    size_t seen_words;
    uint64_t messages;
    char path[128];
    size_t held;        /* bytes that wait to be sent back */
    unsigned char *to_send;
    size_t filled;
    unsigned char buffer[BUFFER_BYTES];
};

static struct {
    uint64_t connections, open, messages, frames, lost, duplicates, out_of_order, corrupt;
    uint64_t wrong_leg, late, texts, pings, broken, bytes;
} counted;
static struct histogram latency;
static unsigned char pattern[FRAME_BYTES];
static int unchecked, counts_only;
static size_t echo_bytes;  /* of audio in each message that goes back; 0: none does */
static struct tls_context *tls;

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void tell(void)
{
#define ITEM(name) printf("\"" #name "\": %llu, ", (unsigned long long)counted.name)
    printf("{");
    ITEM(connections);
    ITEM(open);
    ITEM(messages);
    ITEM(bytes);
    ITEM(frames);
    ITEM(lost);
    ITEM(duplicates);
    ITEM(out_of_order);
    ITEM(corrupt);
    ITEM(wrong_leg);
    ITEM(texts);
    ITEM(pings);
    ITEM(broken);
    ITEM(late);
    printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"cpu_s\": %.4f}\n",
           histogram_us(&latency, 0.5), histogram_us(&latency, 0.99),
           (double)latency.max_ns / 1000, cpu_s());
    fflush(stdout);
    memset(&latency, 0, sizeof latency);
    counted.late = 0;
}

/* Remember a number; return whether it came before. */
static int mark_seen(struct connection *one, uint32_t number)
{
    size_t word = number / 64;
    uint64_t bit = 1ULL << (number % 64);
    if (word >= one->seen_words) {
        size_t words = 2 * word + 16;
        one->seen = realloc(one->seen, words * sizeof *one->seen);
        if (one->seen == NULL)
            die("no memory");
        memset(one->seen + one->seen_words, 0, (words - one->seen_words) * sizeof *one->seen);
        one->seen_words = words;
    }
    int before = (one->seen[word] & bit) != 0;
    one->seen[word] |= bit;
    return before;
}

static void check_order(struct connection *one, uint32_t number)
{
    if (mark_seen(one, number)) {
        counted.duplicates++;
    } else if (number >= one->next) {
        counted.lost += number - one->next;
        one->next = number + 1;
    } else {
        counted.out_of_order++;
        counted.lost--;  /* it was late, not lost */
    }
}

static void check_frame(struct connection *one, const unsigned char *frame, uint64_t now)
{
    struct stamp stamp;
    memcpy(&stamp, frame, sizeof stamp);
    if (stamp.magic != STAMP_MAGIC || stamp.number > MAX_NUMBER || stamp.sent_ns > now) {
        counted.corrupt++;
        return;
    }
    counted.frames++;
    if (memcmp(frame + sizeof stamp, pattern + sizeof stamp, FRAME_BYTES - sizeof stamp) != 0)
        counted.corrupt++;
    if (one->leg < 0)
        one->leg = stamp.leg;
    if (one->leg != stamp.leg) {
        counted.wrong_leg++;
        return;
    }
    check_order(one, stamp.number);
    histogram_add(&latency, now - stamp.sent_ns);
    counted.late += now - stamp.sent_ns > LATE_NS;
}

static void on_binary(struct connection *one, const unsigned char *payload, size_t count)
{
    counted.messages++;
    counted.bytes += count;
    if (unchecked) {
        if (one->messages++ == 0)
            printf("{\"first\": \"%s\", \"at_ns\": %llu}\n", one->path,
                   (unsigned long long)now_ns());
        return;
    }
    if (counts_only) {
        counted.frames++;
        return;
    }
    uint64_t now = now_ns();
    if (count == 0 || count % FRAME_BYTES != 0)
        counted.corrupt++;
    for (size_t at = 0; at + FRAME_BYTES <= count; at += FRAME_BYTES)
        check_frame(one, payload + at, now);
}

static int answer(struct connection *one, int opcode, const unsigned char *payload, size_t count)
{
    unsigned char message[2 + 125];
    if (count > 125)
        return WIRE_GONE;
    message[0] = (unsigned char)(0x80 | opcode);
    message[1] = (unsigned char)count;
    memcpy(message + 2, payload, count);
    return wire_write(&one->wire, message, 2 + count);
}

/* Send audio back, so much in a message, behind a header that a server writes: without a mask. */
static int echo(struct connection *one, const unsigned char *payload, size_t count)
{
    unsigned char *message = one->to_send;
    if (message == NULL)
        message = one->to_send = malloc(4 + 65535);
    if (message == NULL || one->held + count > 65535)
        return WIRE_GONE;
    memcpy(message + 4 + one->held, payload, count);
    one->held += count;
    if (one->held < echo_bytes)
        return 0;
    message[0] = 0x80 | BINARY;
    message[1] = 126;  /* two bytes of length, which is not the shortest for a few bytes */
    message[2] = (unsigned char)(one->held >> 8);
    message[3] = (unsigned char)one->held;
    count = 4 + one->held;
    one->held = 0;
    return wire_write(&one->wire, message, count);
}

/* Act on one frame; nonzero if the connection is over. */
static int on_frame(struct connection *one, const struct header *header, unsigned char *payload)
{
    size_t count = (size_t)header->payload_bytes;
    if (!header->masked || !header->final)
        return WIRE_GONE;
    apply_mask(payload, payload, count, header->mask);
    switch (header->opcode) {
    case BINARY:
        on_binary(one, payload, count);
        return echo_bytes ? echo(one, payload, count) : 0;
    case TEXT:
        counted.texts++;
        if (counts_only && memmem(payload, count, MEDIA, sizeof MEDIA - 1) != NULL)
            on_binary(one, payload, count);
        return 0;
    case PING:
        counted.pings++;
        return answer(one, PONG, payload, count);
    case PONG:
        return 0;
    case CLOSE:
        one->closing = 1;
        answer(one, CLOSE, payload, count < 2 ? count : 2);
        return WIRE_GONE;
    default:
        return WIRE_GONE;
    }
}

/* Answer the request for an upgrade, once it is complete; return how many bytes it took. */
static size_t upgrade(struct connection *one)
{
    static const char name[] = "\r\nsec-websocket-key:";
    char accept[ACCEPT_BYTES], reply[256];
    char *request = (char *)one->buffer;
    if (one->filled == BUFFER_BYTES)
        one->filled--;
    request[one->filled] = 0;
    char *end = strstr(request, "\r\n\r\n");
    char *key = strcasestr(request, name);
    if (end == NULL || key == NULL || key > end)
        return 0;
    sscanf(request, "GET %127s", one->path);
    key += sizeof name - 1;
    key += strspn(key, " ");
    accept_key(key, strcspn(key, " \r"), accept);
    int length = snprintf(reply, sizeof reply,
                          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                          "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                          accept);
    wire_write(&one->wire, reply, (size_t)length);
    one->upgraded = 1;
    counted.open++;
    return (size_t)(end + 4 - request);
}

/* Use what is complete in the buffer; nonzero if the connection is over. */
static int on_bytes(struct connection *one)
{
    struct header header;
    size_t at = one->upgraded ? 0 : upgrade(one);
    int over = 0;
    while (one->upgraded && !over && read_header(one->buffer + at, one->filled - at, &header)) {
        if (header.payload_bytes > BUFFER_BYTES - header.header_bytes)
            return WIRE_GONE;
        if (header.header_bytes + header.payload_bytes > one->filled - at)
            break;
        over = on_frame(one, &header, one->buffer + at + header.header_bytes);
        at += header.header_bytes + header.payload_bytes;
    }
    one->filled -= at;
    if (at > 0 && one->filled > 0)
        memmove(one->buffer, one->buffer + at, one->filled);
    return over;
}

static void drop(struct connection *one)
{
    counted.open -= one->upgraded;
    counted.broken += !one->closing;
    wire_close(&one->wire);
    free(one->seen);
    free(one->to_send);
    free(one);
}

/* What TLS holds already must be read to its end: epoll does not know of it. */
static void on_readable(struct connection *one)
{
    size_t room;
    ssize_t done;
    do {
        room = BUFFER_BYTES - one->filled;
        done = wire_read(&one->wire, one->buffer + one->filled, room);
        if (done == WIRE_AGAIN)
            return;
        if (done != WIRE_GONE)
            one->filled += (size_t)done;
        if (done == WIRE_GONE || on_bytes(one)) {
            drop(one);
            return;
        }
    } while (wire_holds_more(&one->wire) || (size_t)done == room);
}

static void accept_all(int listener, int epoll)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *one = malloc(sizeof *one);
        if (one == NULL)
            die("no memory");
        memset(one, 0, offsetof(struct connection, buffer));
        one->wire.fd = fd;
        one->leg = -1;
        no_delay(fd);
        if (tls != NULL)
            wire_accept_tls(&one->wire, tls);
        counted.connections++;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

static void on_command(void)
{
    char line[256];
    ssize_t count = read(STDIN_FILENO, line, sizeof line);
    if (count <= 0) {
        tell();
        exit(0);
    }
    for (ssize_t i = 0; i < count; i++)
        if (line[i] == '\n')
            tell();
}

static void serve(int listener)
{
    static char command_mark, listener_mark;
    struct epoll_event events[256];
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener_mark};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    event.data.ptr = &command_mark;
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &listener_mark)
                accept_all(listener, epoll);
            else if (events[i].data.ptr == &command_mark)
                on_command();
            else
                on_readable(events[i].data.ptr);
        }
        if (unchecked)
            fflush(stdout);
        usleep(REST_US);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"tls", required_argument, NULL, 't'},
                                            {"unchecked", no_argument, NULL, 'u'},
                                            {"counted", no_argument, NULL, 'c'},
                                            {"echo", required_argument, NULL, 'e'},
                                            {NULL, 0, NULL, 0}};
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 't': tls = tls_server(optarg); break;
        case 'u': unchecked = 1; break;
        case 'c': counts_only = 1; break;
        case 'e': echo_bytes = strtoul(optarg, NULL, 10); break;
        default: return 2;
        }
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    lift_file_limit();
    fill_pattern(pattern);
    serve(listen_and_tell());
}
