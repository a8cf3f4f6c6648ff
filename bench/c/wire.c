#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

static ssize_t plain_read(int fd, void *bytes, size_t count)
{
    ssize_t done = recv(fd, bytes, count, 0);
    if (done > 0)
        return done;
    return done < 0 && (errno == EAGAIN || errno == EINTR) ? WIRE_AGAIN : WIRE_GONE;
}

#ifdef BENCH_TLS

#include <openssl/err.h>
#include <openssl/ssl.h>

static void die_of_tls(const char *what)
{
    die("%s: %s", what, ERR_error_string(ERR_get_error(), NULL));
}

static SSL_CTX *new_context(const SSL_METHOD *method)
{
    SSL_CTX *context = SSL_CTX_new(method);
    if (context == NULL)
        die_of_tls("TLS");
    SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
    return context;
}

struct tls_context *tls_server(const char *pem_path)
{
    SSL_CTX *context = new_context(TLS_server_method());
    SSL_CTX_set_read_ahead(context, 1);  /* else a record takes two reads: its header, the rest */
    if (SSL_CTX_use_certificate_chain_file(context, pem_path) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, pem_path, SSL_FILETYPE_PEM) != 1)
        die_of_tls(pem_path);
    return (struct tls_context *)context;
}

struct tls_context *tls_client(const char *ca_path)
{
    SSL_CTX *context = new_context(TLS_client_method());
    if (SSL_CTX_load_verify_locations(context, ca_path, NULL) != 1)
        die_of_tls(ca_path);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    return (struct tls_context *)context;
}

static SSL *new_tls(struct wire *wire, struct tls_context *context)
{
    SSL *tls = SSL_new((SSL_CTX *)context);
    if (tls == NULL || SSL_set_fd(tls, wire->fd) != 1)
        die_of_tls("TLS");
    wire->tls = (struct tls *)tls;
    return tls;
}

void wire_accept_tls(struct wire *wire, struct tls_context *context)
{
    SSL_set_accept_state(new_tls(wire, context));
}

void wire_connect_tls(struct wire *wire, struct tls_context *context)
{
    SSL *tls = new_tls(wire, context);
    SSL_set_tlsext_host_name(tls, "localhost");
    SSL_set1_host(tls, "localhost");
    if (SSL_connect(tls) != 1)
        die_of_tls("TLS handshake");
}

ssize_t wire_read(struct wire *wire, void *bytes, size_t count)
{
    if (wire->tls == NULL)
        return plain_read(wire->fd, bytes, count);
    ERR_clear_error();
    int done = SSL_read((SSL *)wire->tls, bytes, (int)count);
    if (done > 0)
        return done;
    int why = SSL_get_error((SSL *)wire->tls, done);
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? WIRE_AGAIN : WIRE_GONE;
}

int wire_holds_more(const struct wire *wire)
{
    return wire->tls != NULL && SSL_has_pending((const SSL *)wire->tls);
}

int wire_write(struct wire *wire, const void *bytes, size_t count)
{
    if (wire->tls == NULL)
        return write_all(wire->fd, bytes, count) ? WIRE_GONE : 0;
    for (;;) {
        ERR_clear_error();
        int done = SSL_write((SSL *)wire->tls, bytes, (int)count);
        if (done > 0)
            return 0;
        int why = SSL_get_error((SSL *)wire->tls, done);
        if (why != SSL_ERROR_WANT_WRITE && why != SSL_ERROR_WANT_READ)
            return WIRE_GONE;
        struct pollfd ready = {.fd = wire->fd,
                               .events = why == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN};
        poll(&ready, 1, -1);
    }
}

void wire_close(struct wire *wire)
{
    if (wire->tls != NULL)
        SSL_free((SSL *)wire->tls);
    close(wire->fd);
}

#else

static void die_of_tls(void)
{
    die("compiled without TLS: the headers of OpenSSL were missing (apt install libssl-dev)");
}

struct tls_context *tls_server(const char *pem_path)
{
    (void)pem_path;
    die_of_tls();
    return NULL;
}

struct tls_context *tls_client(const char *ca_path)
{
    (void)ca_path;
    die_of_tls();
    return NULL;
}

void wire_accept_tls(struct wire *wire, struct tls_context *context)
{
    (void)wire;
    (void)context;
}

void wire_connect_tls(struct wire *wire, struct tls_context *context)
{
    (void)wire;
    (void)context;
}

ssize_t wire_read(struct wire *wire, void *bytes, size_t count)
{
    return plain_read(wire->fd, bytes, count);
}

int wire_holds_more(const struct wire *wire)
{
    (void)wire;
    return 0;
}

int wire_write(struct wire *wire, const void *bytes, size_t count)
{
    return write_all(wire->fd, bytes, count) ? WIRE_GONE : 0;
}

void wire_close(struct wire *wire)
{
    close(wire->fd);
}

#endif
