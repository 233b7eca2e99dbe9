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

/* The table of the object that has more lines; home_shift says how many there are. */
#define IN_PLACE
#include "marker_writer.h"
#include "marker_table.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define UNUSED __attribute__((unused))
#define NEXT_NUMBER (1ULL << 32)
#define EMPTY (~0ULL)

/* By how many bits the table's lines have fewer in their numbers: the objects of the marker differ in that. */
const volatile __u64 home_shift;

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

static __always_inline int has_flow(const struct line *line, const __u64 *wanted)
{
	return line->words[4] == wanted[4] && line->words[0] == wanted[0] && line->words[1] == wanted[1] &&
	       line->words[2] == wanted[2] && line->words[3] == wanted[3];
}

/* The mask, and the look at what the compiler knows, are for the verifier. */
static __always_inline struct line *line_of_way(struct line *first, __u32 way)
{
	asm volatile("" : "+r"(way));
	return way < WAYS ? first + way : first;
}

/* What its first line says of a flow that is in another. */
static __always_inline void set_hint(struct line *home, __u32 way, __u8 hint)
{
	if (way)
		*(volatile __u8 *)&home->hints[(way - 1) & (OTHERS - 1)] = hint;
}

_Static_assert((OTHERS & (OTHERS - 1)) == 0, "a mask");

/* How many lines on this flow is; WAYS when it is not there. */
static __always_inline __u32 way_of(struct line *first, const __u64 *wanted)
{
	for (__u32 way = 0; way < WAYS; way++)
		if (has_flow(first + way, wanted))
			return way;
	return WAYS;
}

/* How many lines on there is an empty one; WAYS when there is none. */
static __always_inline __u32 free_way(struct line *first)
{
	for (__u32 way = 0; way < WAYS; way++)
		if (!(__u32)(first + way)->mark)
			return way;
	return WAYS;
}

static __always_inline void change_label(struct line *line, __be32 label)
{
	*(volatile __u64 *)&line->mark = (line->mark & ~0ULL << 32) | label;
}

/* Nobody finds the flow before the first word is there. */
static __always_inline void fill(struct line *line, const __u64 *wanted, __be32 label)
{
	volatile __u64 *words = line->words;

	words[1] = wanted[1];
	words[2] = wanted[2];
	words[3] = wanted[3];
	words[4] = wanted[4];
	*(volatile __u64 *)&line->mark = line->mark | label;
	words[0] = wanted[0];
}

static __always_inline void empty(struct line *line)
{
	*(volatile __u64 *)&line->words[0] = EMPTY;
	*(volatile __u64 *)&line->mark = (line->mark & ~0ULL << 32) + NEXT_NUMBER;
}

/* Where a flow may be, and its words. */
struct places {
	__u64 words[LINE_WORDS];
	struct line *home;
	struct line *second; /* the same one where that is so */
};

static __always_inline int find_places(const __u64 *key, struct places *found)
{
	__u32 only = 0;
	struct state *state = bpf_map_lookup_elem(&table, &only);
	__u64 mixed;

	if (!state)
		return 0;
	fill_words(key, found->words);
	mixed = found->words[1] ^ found->words[2] ^ found->words[3] ^ found->words[4];
	found->home = &state->lines[line_of(mixed * MIX) >> home_shift];
	found->second = &state->lines[line_of(mixed * SECOND_MIX) >> home_shift];
	return 1;
}

/* 0, or an errno. */
static __always_inline int put(const __u64 *key, __be32 label)
{
	struct places at;
	__u32 way, error;

	if (!find_places(key, &at))
		return EINVAL;
	way = way_of(at.home, at.words);
	if (way < WAYS) {
		change_label(line_of_way(at.home, way), label);
		return 0;
	}
	if (at.home->elsewhere) {
		way = way_of(at.second, at.words);
		if (way < WAYS) {
			change_label(line_of_way(at.second, way), label);
			return 0;
		}
		if (at.home->in_map && !bpf_map_update_elem(&overflow, key, &label, BPF_EXIST))
			return 0;
	}
	if (requests.flows >= requests.max_flows)
		return E2BIG;
	way = free_way(at.home);
	if (way < WAYS) {
		fill(line_of_way(at.home, way), at.words, label);
		set_hint(at.home, way, hint_of(at.words[4]));
	} else {
		way = free_way(at.second);
		if (way < WAYS) {
			fill(line_of_way(at.second, way), at.words, label);
		} else {
			error = bpf_map_update_elem(&overflow, key, &label, BPF_NOEXIST);
			if (error)
				return -error;
			at.home->in_map++;
			requests.in_map++;
		}
		at.home->elsewhere++;
	}
	requests.flows++;
	return 0;
}

static __always_inline void take_out(const __u64 *key)
{
	struct places at;
	__u32 way;

	if (!find_places(key, &at))
		return;
	way = way_of(at.home, at.words);
	if (way < WAYS) {
		empty(line_of_way(at.home, way));
		set_hint(at.home, way, 0);
	} else {
		if (!at.home->elsewhere)
			return;
		way = way_of(at.second, at.words);
		if (way < WAYS) {
			empty(line_of_way(at.second, way));
		} else {
			if (!at.home->in_map || bpf_map_delete_elem(&overflow, key))
				return;
			at.home->in_map--;
			requests.in_map--;
		}
		at.home->elsewhere--;
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
