/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Where a flow stands in the table of marker.h: for the program that looks it up and for the one that writes it. To be
 * included behind what has the helpers; layout.py computes the same. */
#ifndef SCITAGS_MARKER_TABLE_H
#define SCITAGS_MARKER_TABLE_H

#define MIX 0x9e3779b97f4a7c15ULL
#define SECOND_MIX 0xc2b2ae3d27d4eb4fULL
/* Where a flow belongs, by the exclusive or of all its words but the first; layout.py computes the same. */
static __always_inline __u32 line_of(__u64 mixed)
{
	return mixed >> (64 - LINE_BITS);
}

/* Two words of a packet, in their order, as one. */
static __always_inline __u64 join(__u32 first, __u32 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return first | (__u64)second << 32;
#else
	return (__u64)first << 32 | second;
#endif
}

/* The first of two words that were joined. */
static __always_inline __u32 first(__u64 word)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return word;
#else
	return word >> 32;
#endif
}

/* The second. */
static __always_inline __u32 second(__u64 word)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return word >> 32;
#else
	return word;
#endif
}

/* Of the last word of a line: the lower octets of both ports, which are what differs most. Its last bit says nothing:
 * Linux gives connections even ports as long as there are any. */
static __always_inline __u64 hint_of(__u64 last)
{
	__u32 ports = second(last);

	return (bpf_ntohs((__u16)(ports ^ ports >> 16)) & 0xff) | 1;
}

/* The words of a line (marker.h) from those of a key. */
static __always_inline void fill_words(const __u64 *key, __u64 *words)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	words[0] = key[0] << 16 | (key[4] >> 40 & 0xff00) | key[4] >> 56;
#else
	words[0] = key[0] >> 16 | (key[4] & 0xff00) << 40 | key[4] << 56;
#endif
	words[1] = join(second(key[0]), first(key[1]));
	words[2] = join(second(key[1]), first(key[2]));
	words[3] = join(second(key[2]), first(key[3]));
	words[4] = join(second(key[3]), first(key[4]));
}

#endif
