/* Asterisk's part: N AudioSocket legs that send a frame every 20 ms each, evenly spread.

   --legs names a file with a line for each leg: its UUID, a space, the port to connect to, and
   " silent" where its frames are silence: the side of a call that is mixed with another leg's.
   Connects, prints {"connected": N}, waits for a line on standard input, sends for the time that
   was asked for, waits a little, closes the legs, and prints what it did as one line of JSON.

   It wakes every --tick-us and sends what is due by then, so that sleeping costs little beside
   sending. The default does not divide the kernel's own ticks: these sample whether the relay is
   in user code or in the kernel, and would else find it at the same point of its work each time.
   What the relay writes to a leg is not read. */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_HEADER 3  /* kind, length (big-endian) */
#define MAX_LEGS 10000
#define FIRST_TURNS 25
/* For a relay to read the UUIDs of all legs. */
#define SETTLE_US 200000

/* What is done wrong once, at frame 10 of the first leg: to try what the sink finds. */
enum fault { NO_FAULT, SKIP, DOUBLE, SWAP, CORRUPT };
#define FAULTY_NUMBER 10

static int frame_bytes = FRAME_BYTES;
static enum fault fault = NO_FAULT;
static int legs[MAX_LEGS];
static int is_silent[MAX_LEGS];
static int leg_count;
static uint64_t sent, refused;
static int gone;

static void put_uuid(unsigned char *message, const char *text)
{
    int digits = 0;
    message[0] = 0x01;
    message[1] = 0;
    message[2] = 16;
    memset(message + MESSAGE_HEADER, 0, 16);
    for (; *text && digits < 32; text++) {
        unsigned value;
        char one[2] = {*text, 0};
        if (sscanf(one, "%x", &value) != 1)
            continue;
        message[MESSAGE_HEADER + digits / 2] |= (unsigned char)(digits % 2 ? value : value << 4);
        digits++;
    }
    if (digits != 32)
        die("not a UUID: %s", text);
}

static void connect_legs(const char *path)
{
    char line[128], uuid[64], word[16];
    int port, fields;
    unsigned char message[MESSAGE_HEADER + 16];
    FILE *file = fopen(path, "r");
    if (file == NULL)
        die("%s: %s", path, strerror(errno));
    while (fgets(line, sizeof line, file) != NULL) {
        if (leg_count == MAX_LEGS)
            die("more than %d legs", MAX_LEGS);
        fields = sscanf(line, "%63s %d %15s", uuid, &port, word);
        if (fields < 2)
            die("not a leg: %s", line);
        put_uuid(message, uuid);
        int fd = connect_to(port);
        if (write_all(fd, message, sizeof message))
            die("the relay closed leg %d at once", leg_count);
        non_blocking(fd);
        is_silent[leg_count] = fields > 2 && strcmp(word, "silent") == 0;
        legs[leg_count++] = fd;
    }
    fclose(file);
}

static void make_message(unsigned char *message, int leg, uint32_t number)
{
    static unsigned char mono[FRAME_BYTES];
    struct stamp stamp = {STAMP_MAGIC, (uint16_t)leg, number, now_ns()};
    if (mono[FRAME_BYTES - 1] == 0)
        fill_pattern(mono);
    memcpy(mono, &stamp, sizeof stamp);
    message[0] = 0x10;
    message[1] = (unsigned char)(frame_bytes >> 8);
    message[2] = (unsigned char)frame_bytes;
    if (is_silent[leg]) {
        memset(message + MESSAGE_HEADER, 0, (size_t)frame_bytes);
        return;
    }
    if (frame_bytes == FRAME_BYTES) {
        memcpy(message + MESSAGE_HEADER, mono, FRAME_BYTES);
        return;
    }
    for (int i = 0; i < FRAME_BYTES; i += 2) {
        memcpy(message + MESSAGE_HEADER + 2 * i, mono + i, 2);
        memset(message + MESSAGE_HEADER + 2 * i + 2, 0, 2);
    }
}

static void send_frame(int leg, uint32_t number, int corrupt)
{
    static unsigned char message[MESSAGE_HEADER + PAIR_BYTES];
    int length = MESSAGE_HEADER + frame_bytes;
    if (legs[leg] < 0)
        return;
    make_message(message, leg, number);
    if (corrupt)
        message[length - 3] ^= 1;  /* the low byte of the last left sample, mono or not */
    ssize_t done = send(legs[leg], message, (size_t)length, MSG_NOSIGNAL);
    if (done == length) {
        sent++;
    } else if (done < 0 && errno == EAGAIN) {
        refused++;  /* the relay does not read: Asterisk would drop the leg */
    } else if (done < 0) {
        close(legs[leg]);
        legs[leg] = -1;
        gone++;
    } else {
        die("leg %d: the relay took %zd of %d bytes", leg, done, length);
    }
}

static void send_due(int leg, uint32_t number)
{
    if (leg != 0 || fault == NO_FAULT ||
        (number != FAULTY_NUMBER && !(fault == SWAP && number == FAULTY_NUMBER + 1))) {
        send_frame(leg, number, 0);
        return;
    }
    if (fault == SWAP) {
        send_frame(leg, number == FAULTY_NUMBER ? number + 1 : number - 1, 0);
    } else if (fault != SKIP) {
        send_frame(leg, number, fault == CORRUPT);
        if (fault == DOUBLE)
            send_frame(leg, number, 0);
    }
}

/* Return at which turn of 20 ms a leg begins. What a relay does at a leg's first frame, or at each fifth,
   is so spread over time, as with calls. The two halves of the list begin alike: where forks have two
   legs, each half has one of them. */
static uint64_t first_turn(int leg)
{
    int half = (leg_count + 1) / 2;
    return (uint64_t)(leg % half) % FIRST_TURNS;
}

/* Frame k of all is due at start + k * 20 ms / legs, if its leg has begun and is not yet done. */
static void send_all(double seconds, uint64_t tick_ns, struct histogram *late)
{
    uint64_t all = (uint64_t)leg_count, each = (uint64_t)(seconds * 50);
    uint64_t count = (each + FIRST_TURNS - 1) * all;
    uint64_t start = now_ns() + tick_ns;
    uint64_t wake = start;
    for (uint64_t next = 0; next < count; wake += tick_ns) {
        struct timespec until = {(time_t)(wake / 1000000000), (long)(wake % 1000000000)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        for (; next < count; next++) {
            uint64_t due = start + next * FRAME_NS / all;
            uint64_t number = next / all - first_turn((int)(next % all));
            if (due > wake)
                break;
            if (number >= each)  /* also less than 0 */
                continue;
            histogram_add(late, now_ns() - due);
            send_due((int)(next % all), (uint32_t)number);
        }
    }
}

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static enum fault fault_named(const char *name)
{
    static const char *names[] = {"none", "skip", "double", "swap", "corrupt"};
    for (int i = 0; i < 5; i++)
        if (strcmp(name, names[i]) == 0)
            return (enum fault)i;
    die("--fault: none, skip, double, swap or corrupt");
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"legs", required_argument, NULL, 'g'},      {"frame", required_argument, NULL, 'f'},
        {"seconds", required_argument, NULL, 's'},   {"tick-us", required_argument, NULL, 't'},
        {"linger-ms", required_argument, NULL, 'l'}, {"fault", required_argument, NULL, 'x'},
        {NULL, 0, NULL, 0}};
    static struct histogram late;
    const char *legs_file = NULL;
    int tick_us = 997, linger_ms = 300, option;
    double seconds = 5;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'g': legs_file = optarg; break;
        case 'f': frame_bytes = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 't': tick_us = atoi(optarg); break;
        case 'l': linger_ms = atoi(optarg); break;
        case 'x': fault = fault_named(optarg); break;
        default: return 2;
        }
    }
    if (legs_file == NULL || tick_us < 1)
        die("--legs is needed");
    if (frame_bytes != FRAME_BYTES && frame_bytes != PAIR_BYTES)
        die("--frame: 320 or 640");
    lift_file_limit();
    prctl(PR_SET_TIMERSLACK, 1);
    connect_legs(legs_file);
    printf("{\"connected\": %d}\n", leg_count);
    fflush(stdout);
    if (leg_count == 0 || getchar() == EOF)
        return 1;
    double cpu_before = cpu_s();
    uint64_t began = now_ns();
    usleep(SETTLE_US);
    send_all(seconds, (uint64_t)tick_us * 1000, &late);
    double cpu_share = (cpu_s() - cpu_before) / ((double)(now_ns() - began) / 1e9);
    usleep((useconds_t)linger_ms * 1000);
    for (int leg = 0; leg < leg_count; leg++)
        if (legs[leg] >= 0)
            close(legs[leg]);
    printf("{\"sent\": %llu, \"refused\": %llu, \"gone\": %d, \"cpu_percent\": %.1f, "
           "\"late_p99_us\": %.0f, \"late_max_us\": %.0f}\n",
           (unsigned long long)sent, (unsigned long long)refused, gone, 100 * cpu_share,
           histogram_us(&late, 0.99), (double)late.max_ns / 1000);
    return 0;
}
