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

/* The table of the object that has more lines; the settings say how many there are. */
#define IN_PLACE
#define HAS_PLACES
#include "marker_writer.h"
#include "marker_table.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define UNUSED __attribute__((unused))
/* The compiler is not to know what this is: what it has proved it would not show to the verifier. */
#define opaque(variable) asm volatile("" : "+r"(variable))
#define NEXT_NUMBER (1ULL << 32)
#define EMPTY (~0ULL)

/* How many bits fewer the number of a line has, and how many lines flows belong to, less one: the objects of the marker
 * differ in that. */
const volatile __u64 line_shift, line_mask;

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

/* The line that is so many on from where a flow belongs. */
static __always_inline struct line *line_at(struct line *home, __u32 way)
{
	opaque(way);
	return home + (way < WAYS ? way : 0);
}

/* In the line that a flow belongs to: what is said of one that is so many lines on. */
static __always_inline void set_hint(struct line *home, __u32 way, __u8 hint)
{
	if (way)
		*(volatile __u8 *)&home->hints[(way - 1) & (OTHERS - 1)] = hint;
}

_Static_assert((OTHERS & (OTHERS - 1)) == 0, "a mask");

/* How many lines on from here this flow is; WAYS for none. */
static __always_inline __u32 way_of(struct line *home, const __u64 *wanted)
{
	for (__u32 way = 0; way < WAYS; way++)
		if (has_flow(line_at(home, way), wanted))
			return way;
	return WAYS;
}

/* How many lines on from here no flow is; WAYS when all are taken. */
static __always_inline __u32 free_way(struct line *home)
{
	for (__u32 way = 0; way < WAYS; way++)
		if (!(__u32)line_at(home, way)->mark)
			return way;
	return WAYS;
}

static __always_inline void change_label(struct line *line, __be32 label)
{
	*(volatile __u64 *)&line->mark = (line->mark & ~0ULL << 32) | label;
}

/* Nobody finds the flow before its first word is there. */
static __always_inline void fill(struct line *line, const __u64 *words, __be32 label)
{
	volatile __u64 *to = line->words;

	to[1] = words[1];
	to[2] = words[2];
	to[3] = words[3];
	to[4] = words[4];
	*(volatile __u64 *)&line->mark = line->mark | label;
	to[0] = words[0];
}

static __always_inline void empty(struct line *line)
{
	*(volatile __u64 *)&line->words[0] = EMPTY;
	*(volatile __u64 *)&line->mark = (line->mark & ~0ULL << 32) + NEXT_NUMBER;
}

/* Where a flow belongs, and where it goes that finds all taken there; the same line twice when that is so. */
static __always_inline int find_lines(const __u64 *words, struct line **home, struct line **second)
{
	__u64 mixed = words[1] ^ words[2] ^ words[3] ^ words[4];
	__u32 only = 0;
	struct state *state = bpf_map_lookup_elem(&table, &only);

	if (!state)
		return 0;
	*home = &state->lines[line_of(mixed * MIX) >> line_shift & line_mask];
	*second = &state->lines[line_of(mixed * SECOND_MIX) >> line_shift & line_mask];
	return 1;
}

/* 0, or an errno. */
static __always_inline int put(const __u64 *key, __be32 label)
{
	__u64 words[LINE_WORDS];
	struct line *home, *second;
	__u32 way, error;

	fill_words(key, words);
	if (!find_lines(words, &home, &second))
		return EINVAL;
	way = way_of(home, words);
	if (way < WAYS) {
		change_label(line_at(home, way), label);
		return 0;
	}
	if (home->elsewhere) {
		way = way_of(second, words);
		if (way < WAYS) {
			change_label(line_at(second, way), label);
			return 0;
		}
		if (home->in_map && !bpf_map_update_elem(&overflow, key, &label, BPF_EXIST))
			return 0;
	}
	if (requests.flows >= requests.max_flows)
		return E2BIG;
	way = free_way(home);
	if (way < WAYS) {
		fill(line_at(home, way), words, label);
		set_hint(home, way, hint_of(words[4]));
	} else {
		way = free_way(second);
		if (way < WAYS) {
			fill(line_at(second, way), words, label);
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
	__u64 words[LINE_WORDS];
	struct line *home, *second;
	__u32 way;

	fill_words(key, words);
	if (!find_lines(words, &home, &second))
		return;
	way = way_of(home, words);
	if (way < WAYS) {
		empty(line_at(home, way));
		set_hint(home, way, 0);
	} else {
		if (!home->elsewhere)
			return;
		way = way_of(second, words);
		if (way < WAYS) {
			empty(line_at(second, way));
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
