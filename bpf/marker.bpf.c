// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Writes the IPv6 flow label of known flows at tc egress.
 *
 * A packet is never dropped, delayed or kept from the programs after this one: whatever happens, the verdict
 * is TC_ACT_UNSPEC (TCX_NEXT has the same value).
 *
 * A program that writes to packets in place has every packet made writable before it starts, those of unknown flows
 * too: the kernel puts that in front of it, copies what is shared, and drops what it cannot copy. So the programs that
 * are attached write by helper, which is dear. Where the kernel tells that a packet is no clone, there is nothing to be
 * made writable, and they jump to a twin that writes in place (marker_in_place.bpf.c has both).
 *
 * What is done for nearly every packet is in quick(): no call, no loop, no branch that is taken. That the compiler
 * leaves it so is what opaque() and unlikely() are for; `python -m bench marker` shows it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include "marker.h"
#include "marker_maps.h"
#include "marker_table.h"
#include "packet.h"

/* What keys of another network namespace have in the octet before that of their protocol, in network order: two containers
 * may have equal 5-tuples. Nothing here, and a constant of its own in each program of the objects for other namespaces. */
#ifndef PLACE
#define PLACE 0
#endif

/* Enough for Ethernet with two tags, IPv6, extension headers of ordinary length, and the ports. */
#define HEADER_OCTETS 256
#define LABEL_MASK bpf_htonl(0x000fffff)

#ifdef IN_PLACE
/* The kernel's own, as much as is looked at; libbpf finds where it is in the kernel that runs. */
struct sk_buff {
	__u8 cloned : 1;
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

#define CHECKSUM_COMPLETE 2

/* Costs nothing: the verifier makes it a move. */
extern void *bpf_cast_to_kern_ctx(void *skb) __ksym;
#endif

/* Keep the compiler from knowing what it knows of a value: it would work it out a second time instead of keeping it,
 * or make one switch of two comparisons, the common one last. */
#define opaque(value) asm volatile("" : "+r"(value))

/* What became of the search for a packet's ports. */
enum search {
	FOUND,
	NOT_IPV6,
	NO_PORTS,
	TOO_SHORT,
	LATER_FRAGMENT,
	TOO_MANY_HEADERS,
};

static __always_inline void count(__u32 outcome)
{
	struct all_counters *counters = the_counters();

	if (counters)
		counters->of[bpf_get_smp_processor_id() & (MAX_CPUS - 1)].packets[outcome]++;
}

/* The label of a line if it has this flow, else 0. */
static __always_inline __be32 label_in(struct line *line, const __u64 *wanted)
{
	__u64 mark = *(volatile __u64 *)&line->mark;

	barrier();
	if (line->words[4] != wanted[4])
		return 0;
	if ((line->words[0] ^ wanted[0]) | (line->words[1] ^ wanted[1]) | (line->words[2] ^ wanted[2]) |
	    (line->words[3] ^ wanted[3]))
		return 0;
	barrier();
	/* It may have got another label meanwhile, but not another flow. */
	return *(volatile __u64 *)&line->mark >> 32 == mark >> 32 ? mark : 0;
}

static __always_inline __be32 find_in_lines(struct state *state, __u32 number, const __u64 *wanted)
{
	struct line *line = &state->lines[number & (LINES - 1)];
	__be32 label = 0;

#pragma unroll
	for (int way = 0; way < WAYS; way++)
		if (!label)
			label = label_in(line + way, wanted);
	return label;
}

/* The label of a flow, wherever it is; 0 when it is not known. */
static __always_inline __be32 find_label(const __u64 *key)
{
	struct state *state = the_state();
	__u64 words[LINE_WORDS], mixed;
	__be32 label, *found;
	struct line *home;

	if (!state)
		return 0;
	fill_words(key, words);
	mixed = words[1] ^ words[2] ^ words[3] ^ words[4];
	home = &state->lines[line_of(mixed * MIX) & (LINES - 1)];
	label = find_in_lines(state, line_of(mixed * MIX), words);
	if (label || !home->elsewhere)
		return label;
	label = find_in_lines(state, line_of(mixed * SECOND_MIX), words);
	if (label || !home->in_map)
		return label;
	found = in_overflow(key);
	return found ? *found : 0;
}

static __always_inline void fill_addresses(const struct ipv6hdr *ip, __u64 *key)
{
	const __be32 *source = ip->saddr.in6_u.u6_addr32;
	const __be32 *destination = ip->daddr.in6_u.u6_addr32;

	key[0] = join(source[0], source[1]);
	key[1] = join(source[2], source[3]);
	key[2] = join(destination[0], destination[1]);
	key[3] = join(destination[2], destination[3]);
}

/* Fill in the key (struct flow_key) of an IPv6 packet, as much as there is of it. By words of 64 bits, as it is
 * compared: a processor that reads what it has just written in smaller pieces has to wait for them. */
static __always_inline enum search find_key(struct __sk_buff *skb, __u32 at, __u64 *key, int *fragmented)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + at;
	void *next = ip + 1;
	__be16 *ports;
	__u8 protocol;

	if (next > end)
		return TOO_SHORT;
	if (ip->version != 6)
		return NOT_IPV6;
	fill_addresses(ip, key);
	protocol = ip->nexthdr;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		struct extension *extension = next;
		struct fragment *fragment = next;

		if (has_ports(protocol))
			break;
		if (!is_extension(protocol))
			return NO_PORTS;
		if ((void *)(extension + 1) > end)
			return TOO_SHORT;
		if (protocol == IPPROTO_FRAGMENT) {
			if (fragment->offset & FRAGMENT_OFFSET)
				return LATER_FRAGMENT;
			next = fragment + 1;
			*fragmented = 1;
		} else {
			next += (extension->length + 1) * 8;
		}
		protocol = extension->next;
	}
	if (!has_ports(protocol))
		return TOO_MANY_HEADERS;
	ports = next;
	if ((void *)(ports + 2) > end)
		return TOO_SHORT;
	key[4] = join(*(__u32 *)ports, bpf_htonl(protocol) | PLACE);
	return FOUND;
}

/* The label of what belongs to no known flow, by where it goes; 0 for none. The entropy is made of both ends, so that
 * a flow keeps it, and its other direction has the same; layout.py computes it too. Only first fragments bear ports,
 * so that those of fragments do not count. */
static __always_inline __be32 find_static(struct __sk_buff *skb, const __u64 *key, int fragmented)
{
	struct static_place where = { .prefix = 32 + 128, .interface = skb->ifindex };
	__u32 ports = fragmented ? 0 : first(key[4]);
	__u32 entropy;
	__be32 *found;

	__builtin_memcpy(&where.network, &key[2], sizeof(where.network));
	found = in_static_labels(&where);
	if (!found)
		return 0;
	ports ^= ports << 16 | ports >> 16;
	entropy = (key[0] ^ key[1] ^ key[2] ^ key[3] ^ ports) * 0x9e3779b97f4a7c15ULL >> 59;
	return *found | bpf_htonl((entropy & 0x18) << 15 | (entropy & 0x4) << 6 | (entropy & 0x3));
}

/* One 32-bit word holds version, traffic class and label: all but the label stays as it is. */
static __always_inline __be32 labelled(__be32 word, __be32 label)
{
	return (word & ~LABEL_MASK) | label;
}

/* By helper, which makes the packet writable first if it has to be, and refuses where that cannot be. */
static __always_inline void write_by_helper(struct __sk_buff *skb, __u32 at, __be32 word, __u32 outcome)
{
	/* A packet that came in by another interface may still bear the sum that the hardware made of it. */
	count(bpf_skb_store_bytes(skb, at, &word, sizeof(word), BPF_F_RECOMPUTE_CSUM) ? OUTCOME_FAILED : outcome);
}

static __always_inline void write_label(struct __sk_buff *skb, __u32 at, __be32 label, __u32 outcome)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (data + at + sizeof(__be32) <= end)
		write_by_helper(skb, at, labelled(*(__be32 *)(data + at), label & LABEL_MASK), outcome);
}

/* Any packet: with VLAN tags in it, extension headers, its headers not in the linear part, its flow not where it
 * is looked for first. Asked for all, those of no known flow may get static labels. */
static SELDOM int look_closer(struct __sk_buff *skb, int ethernet, int all)
{
	__u64 key[KEY_WORDS] = {};
	enum search result = TOO_SHORT;
	int at = 0, fragmented = 0;
	__be32 label = 0;

	/* The second round is for headers that are not in the linear part of the packet, which is rare. */
	for (int round = 0; round < 2; round++) {
		if (round && bpf_skb_pull_data(skb, skb->len < HEADER_OCTETS ? skb->len : HEADER_OCTETS))
			break;
		if (ethernet) {
			at = network_offset((void *)(long)skb->data, (void *)(long)skb->data_end);
			if (at == 0)
				return TC_ACT_UNSPEC;
			if (at < 0)
				continue;
		}
		result = find_key(skb, at & 0x3f, key, &fragmented);
		if (result != TOO_SHORT)
			break;
	}
	if (result == NOT_IPV6 || (!all && result == NO_PORTS))
		return TC_ACT_UNSPEC;
	if (result == FOUND)
		label = find_label(key);
	if (label) {
		write_label(skb, at & 0x3f, label, OUTCOME_MARKED);
		return TC_ACT_UNSPEC;
	}
	if (all && result != TOO_SHORT) {
		label = find_static(skb, key, fragmented);
		if (label) {
			write_label(skb, at & 0x3f, label, OUTCOME_STATIC);
			return TC_ACT_UNSPEC;
		}
	}
	if (result != FOUND && result != NO_PORTS)
		count(result == LATER_FRAGMENT				  ? OUTCOME_FRAGMENT :
		      result == TOO_SHORT && skb->len <= HEADER_OCTETS ? OUTCOME_TRUNCATED :
									 OUTCOME_HEADERS);
	return TC_ACT_UNSPEC;
}

/* Ends the program here: what the compiler makes of a return is a jump to one that all share. */
#ifdef SCITAGS_BCC
#define LEAVE() return TC_ACT_UNSPEC
#else
#define LEAVE()                                         \
	do {                                            \
		asm volatile("r0 = -1\n exit" ::: "r0"); \
		__builtin_unreachable();                \
	} while (0)
_Static_assert(TC_ACT_UNSPEC == -1, "LEAVE()");
#endif

/* The next headers that are looked at closer, beside those of protocols that are left alone there: all extension headers
 * but Hop-by-Hop (0) are above this, TCP and UDP below. */
#define HIGHEST_OF_NONE 40
/* Of the first word of a line: all but the hop limit, and what stands there. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BUT_HOP_LIMIT (~0xff00ULL)
#define PLACE_IN_FIRST ((__u64)PLACE >> 8)
#else
#define BUT_HOP_LIMIT (~(0xffULL << 48))
#define PLACE_IN_FIRST ((__u64)PLACE << 40)
#endif
/* From the IPv6 header to behind the ports. */
#define LOOKED_AT (sizeof(struct ipv6hdr) + sizeof(__be32))
/* The packet's octets from there on, counted from the IPv6 header. Read when it is written: the compiler would keep what
 * is read twice, and pay for the register. */
#define octets(type, at) (*(volatile type *)(behind - LOOKED_AT + (at)))

/* The common packet: no tag in it, TCP or UDP next to the IPv6 header, its flow unknown or in the line where it is looked
 * for first. at is where its IPv6 header begins. What it cannot tell is left to look_closer(). */
static __always_inline int quick(struct __sk_buff *skb, const int at, const int writes_in_place)
{
	void *end = (void *)(long)skb->data_end;
	void *behind = (void *)(long)skb->data;
	struct state *state = the_state();
	__u64 third, last, mixed, mark, other, hint;
	struct line *line;
	__be32 word;

	if (!state)
		return TC_ACT_UNSPEC;
	behind += at + LOOKED_AT;
	opaque(behind);
	if (unlikely(behind > end))
		goto closer;
	/* The protocol and the version, at once. */
	if (at && unlikely((octets(__be32, -2) & bpf_htonl(0xfffff000)) != bpf_htonl(ETH_P_IPV6 << 16 | 0x6000)))
		goto other_protocol;
	if (!at && unlikely((octets(__u8, 0) & 0xf0) != 0x60))
		return TC_ACT_UNSPEC;
	last = octets(__u64, 36);
	third = octets(__u64, 28);
	mixed = octets(__u64, 12);
	mixed ^= octets(__u64, 20);
	mixed ^= third;
	mixed ^= last;
	line = &state->lines[line_of(mixed * MIX)];
	opaque(line);
	mark = *(volatile __u64 *)&line->mark;
	barrier();
	if (unlikely(line->words[4] != last))
		goto another_line;
words:
	if (unlikely(line->words[0] != ((octets(__u64, 6) & BUT_HOP_LIMIT) | PLACE_IN_FIRST)))
		goto closer;
	if (unlikely(line->words[2] != octets(__u64, 20)))
		goto closer;
	if (unlikely(line->words[3] != third))
		goto closer;
	if (unlikely(line->words[1] != octets(__u64, 12)))
		goto closer;
	barrier();
	/* Another label, another flow: look again. */
	if (unlikely(*(volatile __u64 *)&line->mark != mark))
		goto closer;
	word = labelled(octets(__be32, 0), mark);
	if (writes_in_place) {
		octets(__be32, 0) = word;
		count(OUTCOME_MARKED);
	} else {
		write_by_helper(skb, at, word, OUTCOME_MARKED);
	}
	LEAVE();

another_line:
	/* Whether the protocol has ports did not matter so far: a flow has them. */
	other = octets(__u8, 6);
	if (unlikely(other > HIGHEST_OF_NONE))
		goto closer;
	opaque(other);
	if (unlikely(other == IPPROTO_HOPOPTS))
		goto closer;
	/* All hints, and whether there are any elsewhere. */
	if (unlikely(*(volatile __u64 *)line->hints))
		goto others;
	LEAVE();

others:
	hint = hint_of(last);
	opaque(hint);
	/* A jump is taken for the hint that fits alone. */
	if (unlikely(*(volatile __u8 *)&line->hints[0] == hint))
		goto hinted_0;
	if (unlikely(*(volatile __u8 *)&line->hints[1] == hint))
		goto hinted_1;
	if (unlikely(*(volatile __u8 *)&line->hints[2] == hint))
		goto hinted_2;
	if (unlikely(*(volatile __u8 *)&line->hints[3] == hint))
		goto hinted_3;
	if (unlikely(*(volatile __u32 *)&line->elsewhere))
		goto closer;
	LEAVE();

hinted_3:
	line++;
hinted_2:
	line++;
hinted_1:
	line++;
hinted_0:
	line++;
	opaque(line);
	mark = *(volatile __u64 *)&line->mark;
	barrier();
	if (line->words[4] == last)
		goto words;
	goto closer;

other_protocol:
	other = octets(__be16, -2);
	opaque(other);
	if (other != ETH_P_8021Q_BE && other != ETH_P_8021AD_BE)
		LEAVE();
closer:
	return look_closer(skb, at != 0, 0);
}

#ifdef IN_PLACE
#define byte_of(kernel, field) \
	(*((const __u8 *)(kernel) + __builtin_preserve_field_info((kernel)->field, BPF_FIELD_BYTE_OFFSET)))
/* The bits of a field of the kernel's, at the upper end of a word of 64. */
#define upper_bits(kernel, field) \
	((__u64)byte_of(kernel, field) << __builtin_preserve_field_info((kernel)->field, BPF_FIELD_LSHIFT_U64))

/* Whether a packet bears a sum of all its octets, which would have to follow what is written. */
static __always_inline int bears_a_sum(const struct sk_buff *kernel)
{
	__u64 bits = upper_bits(kernel, ip_summed) >> 62;

	opaque(bits);
	return bits == CHECKSUM_COMPLETE;
}

/* Go on in another program and do not come back, but where that is not there. The index is a constant in each call, so
 * that the kernel makes a jump of it: the barrier keeps the compiler from making one call of several. */
#define tail_call(index)                             \
	do {                                         \
		bpf_tail_call(skb, &programs, index); \
		barrier();                           \
	} while (0)

/* In place where there is nothing to be done before a packet is written to: it is no clone, whose octets others may see.
 * Only one that has come in by an interface may bear a sum, and is looked at more closely. What nearly all packets take
 * is short: the kernel puts programs where it likes, and each line of the cache that the code begins to use costs a cycle. */
static __always_inline int go_on(struct __sk_buff *skb, const int ethernet, const int in_place, const int by_helper)
{
	const struct sk_buff *kernel = bpf_cast_to_kern_ctx(skb);

	if (unlikely(upper_bits(kernel, cloned)))
		goto by_helper;
	if (unlikely(skb->ingress_ifindex))
		goto came_in;
go_on:
	tail_call(in_place);
alone:
	return look_closer(skb, ethernet, 0);
came_in:
	if (!bears_a_sum(kernel))
		goto go_on;
by_helper:
	tail_call(by_helper);
	goto alone;
}

/* Devices with a MAC header, Ethernet's; VLAN tags may stand in it. */
SEC("tc") int scitags_label(struct __sk_buff *skb)
{
	return go_on(skb, 1, IN_PLACE_ETHERNET, BY_HELPER_ETHERNET);
}

/* Devices without one: tun, wireguard, IP tunnels. */
SEC("tc") int scitags_label_l3(struct __sk_buff *skb)
{
	if (skb->protocol != bpf_htons(ETH_P_IPV6))
		return TC_ACT_UNSPEC;
	return go_on(skb, 0, IN_PLACE_L3, BY_HELPER_L3);
}

SEC("tc") int scitags_in_place(struct __sk_buff *skb)
{
	return quick(skb, ETH_HLEN, 1);
}

SEC("tc") int scitags_in_place_l3(struct __sk_buff *skb)
{
	return quick(skb, 0, 1);
}

SEC("tc") int scitags_by_helper(struct __sk_buff *skb)
{
	return quick(skb, ETH_HLEN, 0);
}

SEC("tc") int scitags_by_helper_l3(struct __sk_buff *skb)
{
	return quick(skb, 0, 0);
}
#else
SEC("tc") int scitags_label(struct __sk_buff *skb)
{
	return quick(skb, ETH_HLEN, 0);
}

SEC("tc") int scitags_label_l3(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? quick(skb, 0, 0) : TC_ACT_UNSPEC;
}
#endif

/* The same where there are static labels. Programs of their own: the others bear no cost of it. */
SEC("tc") int scitags_label_all(struct __sk_buff *skb)
{
	return look_closer(skb, 1, 1);
}

SEC("tc") int scitags_label_all_l3(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? look_closer(skb, 0, 1) : TC_ACT_UNSPEC;
}
