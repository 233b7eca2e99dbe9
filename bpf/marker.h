/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
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

/* mark: the label in network order in the lower half, never 0 while the slot has a key; in the upper half a number that
 * is another one for every key that the slot has had. */
struct slot {
	struct flow_key key;
	__u64 mark;
};

/* Flows live in a table of sets of a few slots each, which costs no call to look into. A flow whose set is full goes
 * to a second set, and one for which that is full too goes to the map of flows. What is looked at first, the first
 * slot and which others there are, is one line of the cache. */
#define WAYS 5
#define OTHERS (WAYS - 1)
struct set {
	struct slot first;
	__u8 hints[OTHERS]; /* of each other slot: some bits of its key's hash, never 0; 0 for an empty one */
	__u32 elsewhere;    /* how many flows that belong here are in another set or in the map */
	__u32 in_map;       /* how many of them in the map */
	__u32 unused;
	struct slot others[OTHERS];
};

/* Kernels before (about) 5.16 take no more than 4 MiB of global data. */
#ifdef IN_PLACE
#define SETS 32768
#else
#define SETS 8192
#endif

#define MAX_CPUS 1024 /* two processors whose numbers are that far apart would lose a count now and then */

/* A line of the cache for each processor. */
struct counters {
	__u64 packets[8]; /* by outcome */
};

/* What user space reads and writes through a mapping while packets pass.
 * A slot is emptied by its key's last word, which becomes one that no packet has (layout.py: EMPTY), and then gets a
 * new number with label 0. It is filled in this order: the addresses, the label, the last word. The program takes a label
 * only if the mark was the same before and after the comparison of the key, so that it never compares with half a key.
 */
struct state {
	struct set sets[SETS];
	struct counters counters[MAX_CPUS];
};

/* Where a packet of no known flow goes, for the labels that whatever goes there bears. The interface always counts
 * whole, so that the length of a prefix is 32 and that of the network. */
struct static_place {
	__u32 prefix;
	__u32 interface;
	struct in6_addr network;
};

#define MAX_STATIC 4096

/* What those that are attached go on in, in the map of programs. */
enum go_on_in {
	IN_PLACE_ETHERNET,
	IN_PLACE_L3,
	BY_HELPER_ETHERNET,
	BY_HELPER_L3,
	GO_ON_IN,
};

_Static_assert(sizeof(struct static_place) == 24, "layout.py");
_Static_assert(sizeof(struct flow_key) == KEY_WORDS * sizeof(__u64), "compared as words");
_Static_assert(sizeof(struct slot) == 48, "layout.py");
_Static_assert(sizeof(struct set) == 256, "layout.py; whole lines of the cache");
_Static_assert(sizeof(struct counters) >= OUTCOMES * sizeof(__u64), "one for each outcome");

#endif
