/* As much of RFC 6455 as the sink and the floor need. */
#ifndef BENCH_WEBSOCKET_H
#define BENCH_WEBSOCKET_H

#include <stddef.h>
#include <stdint.h>

enum opcode { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

#define ACCEPT_BYTES 29  /* 28 characters of base64 and a zero */

/* What a server answers to a Sec-WebSocket-Key (4.2.2). */
void accept_key(const char *key, size_t key_bytes, char accept[ACCEPT_BYTES]);

struct header {
    int final;
    int opcode;
    int masked;
    unsigned char mask[4];
    uint64_t payload_bytes;
    size_t header_bytes;
};

/* Read a frame's header; 0 if more bytes are needed. */
int read_header(const unsigned char *bytes, size_t count, struct header *header);

/* Mask or unmask in place or from one place to another. */
void apply_mask(unsigned char *to, const unsigned char *from, size_t count,
                const unsigned char mask[4]);

#endif
