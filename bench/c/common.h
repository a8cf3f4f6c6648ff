/* What the programs of the benchmark share: time, errors, TCP, and the frame's stamp. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stddef.h>
#include <stdint.h>

#define FRAME_BYTES 320               /* 8000 Hz * 0.020 s * 2 bytes */
#define PAIR_BYTES (2 * FRAME_BYTES)  /* in and out interleaved */
#define FRAME_NS 20000000ULL
#define STAMP_MAGIC 0xAF5A

/* The first 16 bytes of a frame's samples; the rest is a fixed pattern. In a frame of pairs these
   are the left samples and the right ones are zero, so that the mix is the left side, exactly. */
struct stamp {
    uint16_t magic;
    uint16_t leg;
    uint32_t number;   /* counts the frames of a leg, from 0 */
    uint64_t sent_ns;  /* CLOCK_MONOTONIC */
};

uint64_t now_ns(void);

/* Print to standard error and exit with 2. */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Fill the part of a mono frame behind the stamp. */
void fill_pattern(unsigned char *frame);

/* Listen on a free port of 127.0.0.1 and print {"port": N}. */
int listen_and_tell(void);

/* Connect to a port of 127.0.0.1; the socket blocks and sends at once (TCP_NODELAY). */
int connect_to(int port);

void no_delay(int fd);
void non_blocking(int fd);

/* Write all, waiting as needed; 0, or -1 if the connection is gone. */
int write_all(int fd, const void *bytes, size_t count);

/* Let as many files be open as may be. */
void lift_file_limit(void);

/* Counts of times in ns: 64 parts to each power of two, so a value is kept within 1.6 %. */
#define HISTOGRAM_CELLS (59 * 64)
struct histogram {
    uint64_t cells[HISTOGRAM_CELLS];
    uint64_t total;
    uint64_t max_ns;
};
void histogram_add(struct histogram *histogram, uint64_t ns);
double histogram_us(const struct histogram *histogram, double share);

#endif
