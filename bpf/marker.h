/* SPDX-License-Identifier: Apache-2.0 */
/* What marker.bpf.c shares with its loader; agent/scitags_agent/bpf/layout.py mirrors it. */
#ifndef SCITAGS_MARKER_H
#define SCITAGS_MARKER_H

#include <linux/in6.h>
#include <linux/types.h>

/* The 5-tuple as it stands in the packet, in network order. */
struct flow_key {
	struct in6_addr src;
	struct in6_addr dst;
	__be16 sport;
	__be16 dport;
	__be32 protocol;
} __attribute__((aligned(8)));

#define KEY_WORDS 5

/* What happened to packets that got as far as a decision. A packet of no known flow is not counted: that is
 * the common case, and it shall cost nothing. */
enum outcome {
	OUTCOME_MARKED,
	OUTCOME_FRAGMENT,  /* a later fragment: it has no ports */
	OUTCOME_TRUNCATED, /* ends within its headers */
	OUTCOME_HEADERS,   /* more or longer extension headers than are looked at */
	OUTCOME_FAILED,    /* the kernel would not let it be written to */
	OUTCOME_STATIC,    /* of no known flow, marked by where it goes */
	OUTCOMES,
};

#define PORTS 65536
/* Flows live in a table of sets of a few slots each, which costs no call to look into; a flow whose set is full
 * goes to the map of flows. The whole stays below 4 MiB, beyond which older kernels take no global data. */
#define SETS 16384
#define WAYS 4

/* mark: the label in network order in the lower half, 0 for an empty slot (no tag has label 0); in the upper half
 * a number that is another one for every key that the slot has had. */
struct slot {
	struct flow_key key;
	__u64 mark;
};

/* What user space writes through a mapping while packets pass.
 * A slot is filled in this order: the key, then the label; it is emptied by one store of a new number with label 0. The
 * program takes a label only if the number was the same before and after the comparison of the key, so that it never
 * compares with half a key. */
struct state {
	__u64 source_ports[PORTS / 64]; /* a bit for each source port of any flow */
	__u32 overflowed[SETS];         /* how many flows of each set are in the map */
	struct slot slots[SETS * WAYS];
};

/* Where a packet of no known flow goes, for the labels that whatever goes there bears. The interface always counts
 * whole, so that the length of a prefix is 32 and that of the network. */
struct static_key {
	__u32 prefix;
	__u32 interface;
	struct in6_addr network;
};

#define MAX_STATIC 4096

_Static_assert(sizeof(struct static_key) == 24, "layout.py");
_Static_assert(sizeof(struct flow_key) == KEY_WORDS * sizeof(__u64), "compared as words");
_Static_assert(sizeof(struct slot) == 48, "layout.py");
_Static_assert(sizeof(struct state) < 4 << 20, "older kernels");

#endif
