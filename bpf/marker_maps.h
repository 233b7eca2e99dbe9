/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The maps of marker.bpf.c, and how they are looked into: as libbpf wants them declared, and as BCC does. BCC knows no
 * global data, calls methods of its maps, and has helpers, byte orders and sections of its own. */
#ifndef SCITAGS_MARKER_MAPS_H
#define SCITAGS_MARKER_MAPS_H

#ifdef SCITAGS_BCC

#define SELDOM __always_inline
/* It makes a section for each function. */
#undef SEC
#define SEC(name)

/* As octets: for every member of every element of a value, BCC would make code that prints it. */
struct state_octets {
	char octets[sizeof(struct state)];
};

struct counters_octets {
	char octets[sizeof(struct all_counters)];
};

BPF_F_TABLE("array", __u32, struct state_octets, marker_state, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct counters_octets, marker_counters, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("hash", struct flow_key, __be32, overflow, SCITAGS_MAX_FLOWS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct static_place, __be32, static_labels, MAX_STATIC, BPF_F_NO_PREALLOC);

static __always_inline struct state *the_state(void)
{
	__u32 only = 0;

	return (struct state *)marker_state.lookup(&only);
}

static __always_inline struct all_counters *the_counters(void)
{
	__u32 only = 0;

	return (struct all_counters *)marker_counters.lookup(&only);
}

static __always_inline __be32 *in_overflow(const __u64 *key)
{
	return overflow.lookup((struct flow_key *)key);
}

static __always_inline __be32 *in_static_labels(struct static_place *where)
{
	return static_labels.lookup(where);
}

#else

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The kernel lets only programs under the GPL look at its own description of a packet. */
#ifdef IN_PLACE
char LICENSE[] SEC("license") = "GPL";
#else
char LICENSE[] SEC("license") = "Apache-2.0";
#endif

/* Keep the compiler from moving loads across. */
#define barrier() asm volatile("" ::: "memory")
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)
/* Kept out of the way of what is common. */
#define SELDOM __attribute__((noinline, cold, section(".text")))

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* the loader sets it */
	__type(key, struct flow_key);
	__type(value, __be32);
} overflow SEC(".maps");

/* The label, without entropy, of what goes to a network by an interface. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_STATIC);
	__type(key, struct static_place);
	__type(value, __be32);
} static_labels SEC(".maps");

#ifdef IN_PLACE
/* The kernel empties it when the last process that holds it ends: what is still attached then does all by itself. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, GO_ON_IN);
	__type(key, __u32);
	__type(value, __u32);
} programs SEC(".maps");
#endif

/* In maps of their own: with an offset into one, each takes an instruction more for every packet. */
struct state marker_state;
struct all_counters marker_counters SEC(".bss.counters");

static __always_inline struct state *the_state(void)
{
	return &marker_state;
}

static __always_inline struct all_counters *the_counters(void)
{
	return &marker_counters;
}

static __always_inline __be32 *in_overflow(const __u64 *key)
{
	return bpf_map_lookup_elem(&overflow, key);
}

static __always_inline __be32 *in_static_labels(struct static_place *where)
{
	return bpf_map_lookup_elem(&static_labels, where);
}

#endif
#endif
