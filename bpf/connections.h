/* SPDX-License-Identifier: Apache-2.0 */
/* What connections.bpf.c shares with its loader; agent/scitags_agent/bpf/connections_layout.py mirrors it. */
#ifndef SCITAGS_CONNECTIONS_H
#define SCITAGS_CONNECTIONS_H

#include <linux/types.h>

enum connection_event {
	CONNECTION_OPENING, /* its first SYN is about to leave */
	CONNECTION_ACTIVE,  /* established, by this host */
	CONNECTION_PASSIVE, /* established, by the other */
	CONNECTION_CLOSED,
	CONNECTION_EVENTS,
};

/* What happened to what was to be reported. */
enum report {
	REPORT_WRITTEN,
	REPORT_LOST, /* the ring buffer was full */
	REPORTS,
};

#define MAX_FILTERS 32

/* Ports from first to last, both included. A connection that fits no filter is reported neither opened nor closed. */
struct filter {
	__u16 local_first;
	__u16 local_last;
	__u16 remote_first;
	__u16 remote_last;
};

/* Set before the program is loaded: the verifier takes what is switched off out of it. */
struct settings {
	__u64 netns;	       /* report this network namespace alone; 0 for all */
	__u32 events;	       /* a bit for each enum connection_event that is wanted */
	__u32 filters;	       /* how many of the array are used */
	__u8 has_netns_cookie; /* the kernel tells which namespace a socket is in */
	__u8 has_tcp_sock;     /* the kernel tells how much was delivered */
	__u8 pad[6];
	struct filter filter[MAX_FILTERS];
};

struct connection {
	__u64 cookie; /* the socket's, for as long as the machine runs */
	__u64 netns;  /* its network namespace's, 0 when the kernel does not tell */
	__u64 when;   /* nanoseconds, CLOCK_MONOTONIC */
	/* Octets of payload: the kernel counts a SYN and a FIN as one each, these do not. */
	__u64 sent; /* and acknowledged by the other end */
	__u64 received;
	/* In network order, IPv4 addresses mapped into IPv6. */
	__be32 local[4];
	__be32 remote[4];
	__u32 interface; /* that the socket is bound to, 0 for none */
	__u32 rtt;	 /* microseconds, smoothed */
	__u32 min_rtt;	 /* microseconds */
	__u32 mss;
	__u32 congestion_window; /* segments */
	__u32 retransmitted;	 /* segments, over the connection's life */
	__u32 lost;		 /* segments, now */
	__u32 segments_sent;
	__u32 segments_received;
	__u32 delivered;    /* segments; 0 when the kernel does not tell */
	__u32 delivered_ce; /* of those, with ECN's mark of congestion */
	__u16 local_port;
	__u16 remote_port;
	__u8 event;	/* enum connection_event */
	__u8 old_state; /* TCP state before it closed; 0 when it did not */
	__u8 pad[6];
};

/* What is remembered of a socket from its opening on, to tell payload from SYN and FIN. */
struct progress {
	__u64 received_at_fin_wait2; /* as the kernel counts */
	__u8 syn_counts;	     /* among what was acknowledged: only that of who connected */
	__u8 fin_acked;
	__u8 pad[6];
};

_Static_assert(sizeof(struct settings) == 24 + MAX_FILTERS * 8, "connections_layout.py");
_Static_assert(sizeof(struct connection) == 128, "connections_layout.py");

#endif
