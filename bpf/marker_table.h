/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Where a flow stands in the table of marker.h: for the program that looks it up and for the one that writes it. To be
 * included behind what has the helpers; layout.py computes the same. */
#ifndef SCITAGS_MARKER_TABLE_H
#define SCITAGS_MARKER_TABLE_H

#define MIX 0x9e3779b97f4a7c15ULL
#define SECOND_MIX 0xc2b2ae3d27d4eb4fULL
/* As high as the number of sets can be. */
#define SET_BITS 16

/* Where a key belongs, by the exclusive or of its words; layout.py computes the same. */
static __always_inline __u32 set_of(__u64 mixed)
{
	return mixed >> (64 - SET_BITS) & (SETS - 1);
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

/* Of the last word of a key: the lower octets of both ports, which are what differs most. Its last bit says nothing:
 * Linux gives connections even ports as long as there are any. */
static __always_inline __u64 hint_of(__u64 ports_and_protocol)
{
	__u32 ports = first(ports_and_protocol);

	return (bpf_ntohs((__u16)(ports ^ ports >> 16)) & 0xff) | 1;
}

#endif
