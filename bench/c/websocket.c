#include "websocket.h"

#include <string.h>

static uint32_t rotated(uint32_t word, int by)
{
    return word << by | word >> (32 - by);
}

static void sha1_block(uint32_t state[5], const unsigned char *block)
{
    static const uint32_t constants[] = {0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6};
    uint32_t w[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 80; i++)
        w[i] = rotated(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t mixed = i < 20   ? (b & c) | (~b & d)
                         : i < 40 ? b ^ c ^ d
                         : i < 60 ? (b & c) | (b & d) | (c & d)
                                  : b ^ c ^ d;
        uint32_t next = rotated(a, 5) + mixed + e + constants[i / 20] + w[i];
        e = d;
        d = c;
        c = rotated(b, 30);
        b = a;
        a = next;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
}

/* SHA-1 (FIPS 180-4) of up to 119 bytes: two blocks. */
static void sha1_short(const unsigned char *bytes, size_t count, unsigned char digest[20])
{
    uint32_t state[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    unsigned char padded[128] = {0};
    size_t blocks = count < 56 ? 1 : 2;
    memcpy(padded, bytes, count);
    padded[count] = 0x80;
    padded[64 * blocks - 2] = (unsigned char)(count * 8 >> 8);
    padded[64 * blocks - 1] = (unsigned char)(count * 8);
    for (size_t i = 0; i < blocks; i++)
        sha1_block(state, padded + 64 * i);
    for (int i = 0; i < 20; i++)
        digest[i] = (unsigned char)(state[i / 4] >> (24 - 8 * (i % 4)));
}

void accept_key(const char *key, size_t key_bytes, char accept[ACCEPT_BYTES])
{
    static const char magic[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char joined[119];
    unsigned char digest[21] = {0};
    char *to = accept;
    if (key_bytes > sizeof joined - sizeof magic)
        key_bytes = sizeof joined - sizeof magic;
    memcpy(joined, key, key_bytes);
    memcpy(joined + key_bytes, magic, sizeof magic - 1);
    sha1_short(joined, key_bytes + sizeof magic - 1, digest);
    for (int i = 0; i < 21; i += 3) {
        uint32_t three = (uint32_t)digest[i] << 16 | (uint32_t)digest[i + 1] << 8 | digest[i + 2];
        for (int shift = 18; shift >= 0; shift -= 6)
            *to++ = letters[three >> shift & 63];
    }
    accept[27] = '=';  /* 20 bytes are one short of seven times three */
    accept[28] = 0;
}

int read_header(const unsigned char *bytes, size_t count, struct header *header)
{
    size_t length_bytes, at = 2;
    if (count < 2)
        return 0;
    header->final = bytes[0] >> 7;
    header->opcode = bytes[0] & 15;
    header->masked = bytes[1] >> 7;
    header->payload_bytes = bytes[1] & 127;
    length_bytes = header->payload_bytes < 126 ? 0 : header->payload_bytes == 126 ? 2 : 8;
    header->header_bytes = 2 + length_bytes + (header->masked ? 4 : 0);
    if (count < header->header_bytes)
        return 0;
    if (length_bytes > 0)
        header->payload_bytes = 0;
    for (; at < 2 + length_bytes; at++)
        header->payload_bytes = header->payload_bytes << 8 | bytes[at];
    if (header->masked)
        memcpy(header->mask, bytes + at, 4);
    return 1;
}

void apply_mask(unsigned char *to, const unsigned char *from, size_t count,
                const unsigned char mask[4])
{
    uint64_t wide, eight;
    size_t at = 0;
    memcpy(&wide, mask, 4);
    memcpy((unsigned char *)&wide + 4, mask, 4);
    for (; at + 8 <= count; at += 8) {
        memcpy(&eight, from + at, 8);
        eight ^= wide;
        memcpy(to + at, &eight, 8);
    }
    for (; at < count; at++)
        to[at] = from[at] ^ mask[at % 4];
}
