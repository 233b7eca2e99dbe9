// SPDX-License-Identifier: Apache-2.0
/*
 * A long path between two network namespaces, for kernels without netem: a TAP device in each, and this between them.
 *
 * From the first to the second: a bottleneck that forwards so many packets a second whatever their size, with a queue
 * that drops what does not fit; loss by chance; delay; and a skew, by which packets without an extension header are
 * ahead of those with one, as where a receiver handles them on different processors. Back: delay alone. Only TCP over
 * IPv6 is counted, lost, or kept waiting at the bottleneck.
 *
 * It has two TAP devices, a line "ready" when they are there, and a line of counters (JSON) at SIGUSR1, and at SIGTERM,
 * with which it ends. The devices go with the process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 8192
#define SLOT_OCTETS 9216
#define AT_ONCE 64
#define LONGEST_SLEEP 200e-6
#define ETHERNET_OCTETS 14
#define IPV6_OCTETS 40
#define PAYLOAD_LENGTH (ETHERNET_OCTETS + 4)
#define NEXT_HEADER (ETHERNET_OCTETS + 6)
#define FIRST_HEADER (ETHERNET_OCTETS + IPV6_OCTETS)
#define TCP_OCTETS 20
#define TCP_DATA_OFFSET 12
#define RUNT_DATA 512

struct queue {
	unsigned int head, tail;
	double due[SLOTS];
	uint16_t octets[SLOTS];
	unsigned char (*packets)[SLOT_OCTETS];
};

struct settings {
	double delay, skew, loss, packets_per_second;
	double longest_queue; /* packets */
};

struct counters {
	unsigned long marked, unmarked; /* TCP packets that came to the path, with an extension header and without */
	unsigned long runts;            /* of them those with data, but less than 512 octets */
	unsigned long lost;             /* by chance */
	unsigned long queue_full;       /* dropped at the bottleneck */
	unsigned long no_room;          /* dropped by this program: a figure with any of these says nothing */
};

/* Two queues forth, as the skew makes packets overtake; within each they stay in order. */
enum { WITH_HEADER, WITHOUT_HEADER, BACK, QUEUES };

static struct queue queues[QUEUES];
static struct counters counters;
static volatile sig_atomic_t stopped, asked;

static void heed(int number)
{
	asked = 1;
	stopped = stopped || number == SIGTERM;
}

static void tell(void)
{
	printf("{\"marked\": %lu, \"unmarked\": %lu, \"runts\": %lu, \"lost\": %lu, \"queue_full\": %lu, \"no_room\": %lu}\n",
	       counters.marked, counters.unmarked, counters.runts, counters.lost, counters.queue_full, counters.no_room);
	fflush(stdout);
	asked = 0;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int make_tap(const char *network_namespace, const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	int there = open(network_namespace, O_RDONLY | O_CLOEXEC), tap;

	if (there < 0 || setns(there, CLONE_NEWNET))
		die(network_namespace);
	close(there);
	tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (tap < 0)
		die("/dev/net/tun");
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(tap, TUNSETIFF, &request))
		die(name);
	return tap;
}

static bool put(struct queue *queue, const unsigned char *packet, int octets, double due)
{
	unsigned int slot = queue->head % SLOTS;

	if (queue->head - queue->tail == SLOTS) {
		counters.no_room++;
		return false;
	}
	memcpy(queue->packets[slot], packet, octets);
	queue->octets[slot] = octets;
	queue->due[slot] = due;
	queue->head++;
	return true;
}

/* Octets of data of a TCP packet over IPv6, negative of any other; whether it bears an options header of a scitag. */
static int tcp_data(const unsigned char *packet, int octets, bool *headed)
{
	int at = FIRST_HEADER, kind = octets >= FIRST_HEADER + TCP_OCTETS ? packet[NEXT_HEADER] : -1;

	*headed = kind == IPPROTO_DSTOPTS || kind == IPPROTO_HOPOPTS;
	if (packet[12] != 0x86 || packet[13] != 0xdd)
		return -1;
	while (kind == IPPROTO_DSTOPTS || kind == IPPROTO_HOPOPTS) {
		kind = packet[at];
		at += 8 * (packet[at + 1] + 1);
		if (at + TCP_OCTETS > octets)
			return -1;
	}
	if (kind != IPPROTO_TCP)
		return -1;
	return FIRST_HEADER + (packet[PAYLOAD_LENGTH] << 8 | packet[PAYLOAD_LENGTH + 1]) - at -
	       4 * (packet[at + TCP_DATA_OFFSET] >> 4);
}

/* What becomes of a packet that goes forth. */
static void forward(const struct settings *path, const unsigned char *packet, int octets, double time)
{
	static double free_at; /* when the bottleneck has forwarded all that waits */
	bool headed;
	int data = tcp_data(packet, octets, &headed);
	bool tcp = data >= 0;
	double due = time + path->delay;

	if (tcp) {
		*(headed ? &counters.marked : &counters.unmarked) += 1;
		counters.runts += data > 0 && data < RUNT_DATA;
		if (data > 0 && drand48() < path->loss) {
			counters.lost++;
			return;
		}
	}
	if (tcp && path->packets_per_second > 0) {
		double each = 1 / path->packets_per_second;

		if (free_at < time)
			free_at = time;
		if ((free_at - time) / each > path->longest_queue) {
			counters.queue_full++;
			return;
		}
		free_at += each;
		due = free_at + path->delay;
	}
	if (tcp && !headed)
		put(&queues[WITHOUT_HEADER], packet, octets, due - path->skew);
	else
		put(&queues[WITH_HEADER], packet, octets, due);
}

static bool take(int from, bool back, const struct settings *path)
{
	static unsigned char packet[SLOT_OCTETS];
	bool any = false;

	for (int count = 0; count < AT_ONCE; count++) {
		int octets = read(from, packet, sizeof(packet));

		if (octets <= 0)
			break;
		any = true;
		if (back)
			put(&queues[BACK], packet, octets, now() + path->delay);
		else
			forward(path, packet, octets, now());
	}
	return any;
}

static struct queue *first_due(struct queue *one, struct queue *other, double time)
{
	struct queue *found = NULL, *both[] = { one, other };

	for (int number = 0; number < 2; number++) {
		struct queue *queue = both[number];
		double due = queue->due[queue->tail % SLOTS];

		if (queue->tail != queue->head && due <= time && (!found || due < found->due[found->tail % SLOTS]))
			found = queue;
	}
	return found;
}

static bool deliver(int to, struct queue *one, struct queue *other)
{
	double time = now();
	struct queue *queue;
	bool any = false;

	while ((queue = first_due(one, other, time))) {
		unsigned int slot = queue->tail % SLOTS;

		if (write(to, queue->packets[slot], queue->octets[slot]) < 0 && errno == EAGAIN)
			break;
		queue->tail++;
		any = true;
	}
	return any;
}

static void rest(int one, int other)
{
	struct pollfd both[] = { { .fd = one, .events = POLLIN }, { .fd = other, .events = POLLIN } };
	double time = now(), longest = LONGEST_SLEEP;

	for (int number = 0; number < QUEUES; number++) {
		struct queue *queue = &queues[number];

		if (queue->tail != queue->head && queue->due[queue->tail % SLOTS] - time < longest)
			longest = queue->due[queue->tail % SLOTS] - time;
	}
	if (longest > 0) {
		struct timespec sleep = { .tv_nsec = longest * 1e9 };

		ppoll(both, 2, &sleep, NULL);
	}
}

static void read_settings(int count, char **arguments, struct settings *path)
{
	int option;

	while ((option = getopt(count, arguments, "d:k:l:r:q:s:")) != -1) {
		switch (option) {
		case 'd': path->delay = atof(optarg); break;
		case 'k': path->skew = atof(optarg); break;
		case 'l': path->loss = atof(optarg); break;
		case 'r': path->packets_per_second = atof(optarg); break;
		case 'q': path->longest_queue = atof(optarg); break;
		case 's': srand48(atol(optarg)); break;
		default: exit(2);
		}
	}
	if (count - optind != 4) {
		fprintf(stderr, "path_box [-d DELAY_SECONDS] [-k SKEW_SECONDS] [-l LOSS] [-r PACKETS_PER_SECOND] "
				"[-q QUEUE_PACKETS] [-s SEED] NETNS TAP NETNS TAP\n");
		exit(2);
	}
}

int main(int count, char **arguments)
{
	struct settings path = { .longest_queue = 100 };
	int one, other;

	read_settings(count, arguments, &path);
	for (int number = 0; number < QUEUES; number++) {
		queues[number].packets = malloc((size_t)SLOTS * SLOT_OCTETS);
		if (!queues[number].packets)
			die("malloc");
	}
	one = make_tap(arguments[optind], arguments[optind + 1]);
	other = make_tap(arguments[optind + 2], arguments[optind + 3]);
	/* A router does not wait for what the hosts have to do; without the right, this one does. */
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 });
	signal(SIGTERM, heed);
	signal(SIGUSR1, heed);
	printf("ready\n");
	fflush(stdout);
	while (!stopped) {
		bool any = take(one, false, &path) | take(other, true, &path);

		any |= deliver(other, &queues[WITH_HEADER], &queues[WITHOUT_HEADER]);
		any |= deliver(one, &queues[BACK], &queues[BACK]);
		if (!any)
			rest(one, other);
		if (asked)
			tell();
	}
	return 0;
}
