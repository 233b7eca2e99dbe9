/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What kernel_label.bpf.c shares with its loader; agent/scitags_agent/bpf/kernel_label.py mirrors it. */
#ifndef SCITAGS_KERNEL_LABEL_H
#define SCITAGS_KERNEL_LABEL_H

#include <linux/types.h>

#include "marker.h"

/* What became of a socket that has a label to bear, or to give back. */
enum socket_state {
	SOCKET_WAITING,	 /* its next packet bears the label, whatever that packet is */
	SOCKET_LABELLED, /* the kernel writes the label */
	SOCKET_GIVEN_BACK,
	SOCKET_OWN_LABEL, /* the application has chosen a label itself, which is left alone */
	SOCKET_REFUSED,	  /* the kernel would not be asked for the callback */
	SOCKET_NO_LABEL,  /* the application wants none (IPV6_AUTOFLOWLABEL) */
};

/* What is known of a socket. */
struct labelled {
	__be32 label;	    /* 0 when it is to be given back */
	__u8 state;	    /* enum socket_state */
	__u8 asked_before;  /* somebody else wants the callback that we use: it stays on */
	__s8 rehash_before; /* SO_TXREHASH, as it was */
	__u8 pad;
	__u64 expectation; /* by which it has its label, 0 for none */
};

/* Where connections are expected; one of the ports is 0, which stands for any. */
struct expected_place {
	__u64 netns; /* 0 where the kernel does not tell */
	struct in6_addr near;
	struct in6_addr far;
	__be16 near_port;
	__be16 far_port;
	__u32 pad;
};

/* One connection that is expected. */
struct expectation {
	__u64 id;
	__u64 sent; /* nanoseconds, CLOCK_MONOTONIC: what has been asked for before that is not meant */
	__u64 until;
	__be32 label; /* without entropy; 0 for a connection that is to have none */
	__u32 pad;
};

/* From which of its two directions a connection's entropy is computed. */
enum canonical {
	CANONICAL_FROM_NEAR,
	CANONICAL_FROM_FAR,
	CANONICAL_BY_PORT, /* from the end with the lower one */
};

#define MAX_EXPECTED 32

/* All that are expected at one place. */
struct expectations {
	__u64 begins; /* like `ends`, another number for each writing */
	__u32 count;  /* 0 where there are more than there is room for: who is meant cannot be said then */
	__u32 canonical;
	struct expectation one[MAX_EXPECTED];
	__u64 ends;
};

/* What the walk over the sockets says of each that has to do with us. */
struct report {
	struct flow_key key; /* from this host's end */
	__be32 label;
	__u32 state;
	__s32 error; /* negative errno of SOCKET_REFUSED */
	__u32 callbacks; /* that are asked for of the socket, by anybody */
};

#define MAX_PLACES 4096

/* Set before the programs are loaded. */
struct kernel_label_settings {
	__u64 netns; /* label the sockets of this network namespace, and of those in the map of places; 0 for all */
	__u32 seed;  /* of the entropy of connections that were expected */
	__u8 has_netns_cookie;
	__u8 has_places; /* whether there are any others */
	__u8 pad[2];
};

_Static_assert(sizeof(struct labelled) == 16, "kernel_label.py");
_Static_assert(sizeof(struct expected_place) == 48, "kernel_label.py");
_Static_assert(sizeof(struct expectation) == 32, "kernel_label.py");
_Static_assert(sizeof(struct expectations) == 24 + MAX_EXPECTED * 32, "kernel_label.py");
_Static_assert(sizeof(struct report) == 56, "kernel_label.py");
_Static_assert(sizeof(struct kernel_label_settings) == 16, "kernel_label.py");

#endif
