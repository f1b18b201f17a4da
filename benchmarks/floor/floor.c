/* The floor: what the kernel's UDP work alone costs on this machine.
 *
 * Answers every query with the same A record behind its own question: recvmmsg and sendmmsg in batches, no look-up,
 * no policy. Measured in the same run as a server, it turns microseconds that depend on the machine into a ratio.
 *
 * Several processes share the port as the server's workers do (SO_REUSEPORT).
 *
 *     cc -O2 -o floor floor.c && ./floor 127.0.0.1 5300 [PROCESSES]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 64, SIZE = 512 };

static const unsigned char RECORD[16] = {0xC0, 0x0C, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 1, 5};

/* Turns a query into its reply in place; 0 for what is no query of one question. */
static int reply(unsigned char *p, int n, int room) {
    int end = 12;
    if (n < 17 || (p[2] & 0x80)) return 0;
    while (end < n && p[end]) {
        if (p[end] > 63) return 0;
        end += p[end] + 1;
    }
    end += 5;
    if (end > n || end + (int)sizeof RECORD > room) return 0;
    p[2] = 0x84 | (p[2] & 1);
    p[3] = 0;
    p[6] = 0, p[7] = 1;
    memset(p + 8, 0, 4);
    memcpy(p + end, RECORD, sizeof RECORD);
    return end + (int)sizeof RECORD;
}

static void serve_udp(int fd) {
    static unsigned char data[BATCH][SIZE];
    static struct sockaddr_in peers[BATCH];
    struct mmsghdr in[BATCH], out[BATCH];
    struct iovec iov[BATCH], oov[BATCH];
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            iov[i] = (struct iovec){data[i], SIZE};
            in[i].msg_hdr = (struct msghdr){.msg_name = &peers[i], .msg_namelen = sizeof peers[i], .msg_iov = &iov[i], .msg_iovlen = 1};
        }
        int got = recvmmsg(fd, in, BATCH, MSG_DONTWAIT, NULL), made = 0;
        if (got <= 0) {
            poll(&ready, 1, -1);
            continue;
        }
        for (int i = 0; i < got; i++) {
            int size = reply(data[i], (int)in[i].msg_len, SIZE);
            if (!size) continue;
            oov[made] = (struct iovec){data[i], (size_t)size};
            out[made].msg_hdr = (struct msghdr){.msg_name = &peers[i], .msg_namelen = sizeof peers[i], .msg_iov = &oov[made], .msg_iovlen = 1};
            made++;
        }
        for (int sent = 0; sent < made;) {
            int n = sendmmsg(fd, out + sent, (unsigned)(made - sent), 0);
            if (n <= 0) break;
            sent += n;
        }
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in here = {.sin_family = AF_INET};
    int processes = argc == 4 ? atoi(argv[3]) : 1;
    if (argc < 3 || argc > 4 || processes < 1 || inet_pton(AF_INET, argv[1], &here.sin_addr) != 1) {
        fprintf(stderr, "usage: floor ADDRESS PORT [PROCESSES]\n");
        return 2;
    }
    here.sin_port = htons((unsigned short)atoi(argv[2]));
    while (--processes > 0 && fork() > 0)
        ;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* each process ends with the one that started it */
    int fd = socket(AF_INET, SOCK_DGRAM, 0), size = 4 << 20, on = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&here, sizeof here)) {
        perror("bind");
        return 1;
    }
    serve_udp(fd);
}
