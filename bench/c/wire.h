/* A TCP connection, plain or under TLS. TLS is there only if compiled with BENCH_TLS. */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <stddef.h>
#include <sys/types.h>

#define WIRE_AGAIN (-1)  /* nothing to be had now */
#define WIRE_GONE (-2)   /* closed or broken */

struct tls_context;
struct tls;

struct wire {
    int fd;
    struct tls *tls;  /* NULL: plain */
};

/* What a server needs: certificate and key in one PEM file. */
struct tls_context *tls_server(const char *pem_path);

/* What a client needs: the authorities that it trusts. The name must be "localhost". */
struct tls_context *tls_client(const char *ca_path);

/* Put TLS on a connected wire. The client's handshake is done at once (the socket blocks); the
   server's comes with the first reads. */
void wire_accept_tls(struct wire *wire, struct tls_context *context);
void wire_connect_tls(struct wire *wire, struct tls_context *context);

/* Return the number of bytes read, WIRE_AGAIN or WIRE_GONE. */
ssize_t wire_read(struct wire *wire, void *bytes, size_t count);

/* Whether TLS has read from the socket what it has not handed out yet. */
int wire_holds_more(const struct wire *wire);

/* Write all, waiting as needed; 0 or WIRE_GONE. */
int wire_write(struct wire *wire, const void *bytes, size_t count);

void wire_close(struct wire *wire);

#endif
