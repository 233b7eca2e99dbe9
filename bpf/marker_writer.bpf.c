// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Writes the marker's table: thousands of flows in one system call, which a process that maps the table would write one
 * by one. Run by BPF_PROG_TEST_RUN, never for a packet. An object of its own, as kernels before 5.17 do not take it.
 *
 * The order of writes is that of marker.h, and holds where the processor makes stores visible in their order, as x86
 * does: elsewhere, barriers have to go between them, here and in the program that reads.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The table of the object that has more sets; set_mask says how many there are. */
#define IN_PLACE
#include "marker_writer.h"
#include "marker_table.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define UNUSED __attribute__((unused))
#define NEXT_NUMBER (1ULL << 32)
#define EMPTY (~0ULL)

/* How many sets the table has, less one: the objects of the marker differ in that. */
const volatile __u64 set_mask;

/* The loader puts the marker's own in the places of these two. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} table SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, __be32);
} overflow SEC(".maps");

struct requests requests;

static __always_inline int has_key(const struct slot *slot, const __u64 *wanted)
{
	const __u64 *words = (const void *)&slot->key;

	return words[4] == wanted[4] && words[0] == wanted[0] && words[1] == wanted[1] && words[2] == wanted[2] &&
	       words[3] == wanted[3];
}

/* The masks say to the verifier what the compiler may have told it otherwise. */
static __always_inline struct slot *slot_of(struct set *set, __u32 way)
{
	return way ? &set->others[(way - 1) & (OTHERS - 1)] : &set->first;
}

static __always_inline void set_hint(struct set *set, __u32 way, __u8 hint)
{
	if (way)
		*(volatile __u8 *)&set->hints[(way - 1) & (OTHERS - 1)] = hint;
}

/* Which slot of a set has this key; WAYS for none. */
static __always_inline __u32 way_of(struct set *set, const __u64 *wanted)
{
	for (__u32 way = 0; way < WAYS; way++)
		if (has_key(slot_of(set, way), wanted))
			return way;
	return WAYS;
}

/* Which slot of a set has no key; WAYS when all have. */
static __always_inline __u32 free_way(struct set *set)
{
	for (__u32 way = 0; way < WAYS; way++)
		if (!(__u32)slot_of(set, way)->mark)
			return way;
	return WAYS;
}

_Static_assert((OTHERS & (OTHERS - 1)) == 0, "masks");

static __always_inline void change_label(struct slot *slot, __be32 label)
{
	*(volatile __u64 *)&slot->mark = (slot->mark & ~0ULL << 32) | label;
}

/* Nobody finds the slot before its key's last word is there. */
static __always_inline void fill(struct set *set, __u32 way, const __u64 *key, __be32 label)
{
	struct slot *slot = slot_of(set, way);
	volatile __u64 *words = (volatile void *)&slot->key;

	words[0] = key[0];
	words[1] = key[1];
	words[2] = key[2];
	words[3] = key[3];
	*(volatile __u64 *)&slot->mark = slot->mark | label;
	words[4] = key[4];
	set_hint(set, way, hint_of(key[4]));
}

static __always_inline void empty(struct set *set, __u32 way)
{
	struct slot *slot = slot_of(set, way);
	volatile __u64 *words = (volatile void *)&slot->key;

	words[4] = EMPTY;
	*(volatile __u64 *)&slot->mark = (slot->mark & ~0ULL << 32) + NEXT_NUMBER;
	set_hint(set, way, 0);
}

/* Both sets of a key, the same one twice when that is so. */
static __always_inline int find_sets(const __u64 *key, struct set **home, struct set **second)
{
	__u64 word = key[0] ^ key[1] ^ key[2] ^ key[3] ^ key[4];
	__u32 only = 0;
	struct state *state = bpf_map_lookup_elem(&table, &only);

	if (!state)
		return 0;
	*home = &state->sets[set_of(word * MIX) & set_mask];
	*second = &state->sets[set_of(word * SECOND_MIX) & set_mask];
	return 1;
}

/* 0, or an errno. */
static __always_inline int put(const __u64 *key, __be32 label)
{
	struct set *home, *second;
	__u32 way, error;

	if (!find_sets(key, &home, &second))
		return EINVAL;
	way = way_of(home, key);
	if (way < WAYS) {
		change_label(slot_of(home, way), label);
		return 0;
	}
	if (home->elsewhere) {
		way = way_of(second, key);
		if (way < WAYS) {
			change_label(slot_of(second, way), label);
			return 0;
		}
		if (home->in_map && !bpf_map_update_elem(&overflow, key, &label, BPF_EXIST))
			return 0;
	}
	if (requests.flows >= requests.max_flows)
		return E2BIG;
	way = free_way(home);
	if (way < WAYS) {
		fill(home, way, key, label);
	} else {
		way = free_way(second);
		if (way < WAYS) {
			fill(second, way, key, label);
		} else {
			error = bpf_map_update_elem(&overflow, key, &label, BPF_NOEXIST);
			if (error)
				return -error;
			home->in_map++;
			requests.in_map++;
		}
		home->elsewhere++;
	}
	requests.flows++;
	return 0;
}

static __always_inline void take_out(const __u64 *key)
{
	struct set *home, *second;
	__u32 way;

	if (!find_sets(key, &home, &second))
		return;
	way = way_of(home, key);
	if (way < WAYS) {
		empty(home, way);
	} else {
		if (!home->elsewhere)
			return;
		way = way_of(second, key);
		if (way < WAYS) {
			empty(second, way);
		} else {
			if (!home->in_map || bpf_map_delete_elem(&overflow, key))
				return;
			home->in_map--;
			requests.in_map--;
		}
		home->elsewhere--;
	}
	requests.flows--;
}

static long put_one(__u32 number, void *context UNUSED)
{
	struct request *request = &requests.all[number & (MAX_REQUESTS - 1)];

	request->error = put((const __u64 *)&request->key, request->label);
	requests.refused += request->error != 0;
	return 0;
}

static long take_out_one(__u32 number, void *context UNUSED)
{
	take_out((const __u64 *)&requests.all[number & (MAX_REQUESTS - 1)].key);
	return 0;
}

SEC("syscall") int scitags_write_table(void *context UNUSED)
{
	requests.refused = 0;
	if (requests.kind == REQUEST_PUT)
		bpf_loop(requests.count, put_one, NULL, 0);
	else
		bpf_loop(requests.count, take_out_one, NULL, 0);
	return 0;
}
