// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Has the kernel itself write the flow label of TCP connections: no program runs for their packets.
 *
 * The kernel makes the label of a packet from the hash of its socket (net.ipv6.auto_flowlabels), and a sock_ops
 * program may choose that hash. A connection that is known when it opens gets it then. One that is open already is
 * found by a walk over all sockets, which asks for a callback: the kernel calls before the next packet leaves, the
 * hash is set, and the callback is taken back.
 *
 * One whose far port nobody knows can be expected: the first that comes to stand there after that bears the label from
 * its first packet of data on. An expectation is met once, whoever is quicker, a connection or the agent that takes it
 * back; and where connections with different labels are expected, by none.
 *
 * Nothing but the hash changes, and that the kernel draws no new one after a time-out (SO_TXREHASH), which would
 * be another label.
 */
#include <linux/bpf.h>
#include <linux/in.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "kernel_label.h"

/* The kernel lets only programs under the GPL look into its sockets. */
char LICENSE[] SEC("license") = "GPL";

#define AF_INET6 10
#define SOL_SOCKET 1
#define SOL_TCP 6
#define SOL_IPV6 41
#define IPV6_AUTOFLOWLABEL 70
#define SO_TXREHASH 74
#define TXREHASH_OFF 0
#define TXREHASH_DEFAULT -1
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008
#define GO_ON 1
#define LABEL_MASK bpf_htonl(0x000fffff)
#define CRC32_POLYNOMIAL 0xedb88320u
/* At an expectation, when many connections come at once. */
#define ATTEMPTS 3
/* Called for every packet of the socket, before its header is made. */
#define EACH_PACKET BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG

/* The kernel's own, as much as is looked at; libbpf finds where it is in the kernel that runs. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct net {
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	unsigned short skc_family;
	__u16 skc_num;
	__be16 skc_dport;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u8 sk_txrehash;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct ipv6_pinfo {
	__be32 flow_label;
};

struct tcp_sock {
	__u8 bpf_sock_ops_cb_flags;
};

struct tcp6_sock {
	struct tcp_sock tcp;
	struct ipv6_pinfo inet6;
};
#pragma clang attribute pop

const volatile struct kernel_label_settings settings;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* the loader sets it */
	__type(key, struct flow_key);
	__type(value, __be32);
} labels SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct labelled);
} labelled SEC(".maps");

/* The hash that the kernel makes this label of. The twelve bits that are in no label choose the transmit queue: they
 * are drawn from the connection, so that connections with one tag spread. */
static __always_inline __u32 hash_of(__be32 label, __u32 spread)
{
	__u32 word = (label & LABEL_MASK) | (spread & ~LABEL_MASK);

	return word >> 16 | word << 16;
}

static __always_inline __u32 spread_of(struct bpf_sock_ops *ops)
{
	return (ops->local_port ^ ops->remote_port ^ ops->remote_ip6[3]) * 0x9e3779b1u;
}

/* Expectations, by place. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* the loader sets it */
	__type(key, struct expected_place);
	__type(value, struct expectations);
} expected SEC(".maps");

/* The other network namespaces whose sockets may have labels, by their cookies. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PLACES);
	__type(key, __u64);
	__type(value, __be32);
} places SEC(".maps");

/* By the id of an expectation: the cookie of the socket that has met it, 0 when it was taken back or is decided about.
 * Who puts it here first has it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* the loader sets it */
	__type(key, __u64);
	__type(value, __u64);
} met SEC(".maps");

static __always_inline void fill_key(struct bpf_sock_ops *ops, struct flow_key *key)
{
	key->src.in6_u.u6_addr32[0] = ops->local_ip6[0];
	key->src.in6_u.u6_addr32[1] = ops->local_ip6[1];
	key->src.in6_u.u6_addr32[2] = ops->local_ip6[2];
	key->src.in6_u.u6_addr32[3] = ops->local_ip6[3];
	key->dst.in6_u.u6_addr32[0] = ops->remote_ip6[0];
	key->dst.in6_u.u6_addr32[1] = ops->remote_ip6[1];
	key->dst.in6_u.u6_addr32[2] = ops->remote_ip6[2];
	key->dst.in6_u.u6_addr32[3] = ops->remote_ip6[3];
	key->sport = bpf_htons(ops->local_port);
	key->dport = bpf_htons(bpf_ntohl(ops->remote_port));
	key->protocol = bpf_htonl(IPPROTO_TCP);
}

/* Whether sockets of a network namespace may have labels; place is what their keys have beside the protocol. */
static __always_inline int is_looked_into(__u64 netns, __be32 *place)
{
	__be32 *found;

	*place = 0;
	if (!settings.netns || netns == settings.netns)
		return 1;
	if (!settings.has_places)
		return 0;
	found = bpf_map_lookup_elem(&places, &netns);
	if (!found)
		return 0;
	*place = *found;
	return 1;
}

static __always_inline int is_ours(struct bpf_sock_ops *ops, __be32 *place)
{
	*place = 0;
	return !settings.has_netns_cookie || is_looked_into(bpf_get_netns_cookie(ops), place);
}

/* Why the kernel makes no label of a socket's hash; SOCKET_LABELLED where it does. A sock_ops program asks through its
 * context. Kernels that do not tell what the application wants (before 6.0) are taken to make one. */
static __always_inline int why_no_label(const struct tcp6_sock *sock, void *asked_through)
{
	int automatic = 1;

	if (sock->inet6.flow_label)
		return SOCKET_OWN_LABEL;
	bpf_getsockopt(asked_through, SOL_IPV6, IPV6_AUTOFLOWLABEL, &automatic, sizeof(automatic));
	return automatic ? SOCKET_LABELLED : SOCKET_NO_LABEL;
}

/* Has the kernel write this label from now on; where the application has chosen one itself or none, the walk tells. */
static __always_inline void give(struct bpf_sock_ops *ops, __be32 label, __u64 expectation)
{
	struct bpf_sock *sock = ops->sk;
	int off = TXREHASH_OFF, before;
	struct tcp6_sock *full;
	struct labelled *known;

	if (!sock)
		return;
	full = bpf_skc_to_tcp6_sock(sock);
	if (!full || why_no_label(full, ops) != SOCKET_LABELLED)
		return;
	known = bpf_sk_storage_get(&labelled, sock, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known)
		return;
	if (!known->label)
		known->rehash_before = bpf_getsockopt(ops, SOL_SOCKET, SO_TXREHASH, &before, sizeof(before)) ?
					       TXREHASH_DEFAULT :
					       before;
	if (bpf_setsockopt(ops, SOL_SOCKET, SO_TXREHASH, &off, sizeof(off)))
		return;
	known->label = label;
	known->state = SOCKET_LABELLED;
	known->expectation = expectation;
	ops->sk_txhash = hash_of(label, spread_of(ops));
}

/* A connection that opens: what is known of it already decides of its first packet on. Whether anything is. */
static __always_inline int label_new(struct bpf_sock_ops *ops, __be32 place)
{
	struct flow_key key;
	__be32 *label;

	fill_key(ops, &key);
	key.protocol |= place;
	label = bpf_map_lookup_elem(&labels, &key);
	if (label)
		give(ops, *label, 0);
	return label != 0;
}

/* CRC-32 as zlib computes it, of a flow key. Not static, so that the verifier goes through its loops once. */
__noinline __u32 crc32_of(const struct flow_key *key, __u32 seed)
{
	const __u8 *octets = (const __u8 *)key;
	__u32 crc = ~seed;

	if (!key)
		return 0;
	for (int i = 0; i < (int)sizeof(*key); i++) {
		crc ^= octets[i];
		for (int bit = 0; bit < 8; bit++) {
			__u32 lowest = crc & 1;

			asm volatile("" : "+r"(lowest)); /* no jump here, of which the verifier would try both ways each time */
			crc = crc >> 1 ^ lowest * CRC32_POLYNOMIAL;
		}
	}
	return ~crc;
}

/* The five bits of entropy, where they belong in a label: the agent gives the flow the same when it hears of the
 * connection. */
static __always_inline __be32 entropy_of(struct bpf_sock_ops *ops, __u32 canonical)
{
	struct flow_key key, reversed;
	__u32 entropy;

	fill_key(ops, &key);
	if (canonical == CANONICAL_FROM_FAR ||
	    (canonical == CANONICAL_BY_PORT && bpf_ntohs(key.sport) > bpf_ntohs(key.dport))) {
		reversed.src = key.dst;
		reversed.dst = key.src;
		reversed.sport = key.dport;
		reversed.dport = key.sport;
		reversed.protocol = key.protocol;
		key = reversed;
	}
	entropy = crc32_of(&key, settings.seed) & 31;
	return bpf_htonl((entropy & 24) << 15 | (entropy & 4) << 6 | (entropy & 3));
}

/* Which of those that are expected at a place a connection is. */
struct meeting {
	__u64 id; /* 0 for none */
	__u64 sent;
	__be32 label;
	__u32 canonical;
	__u8 is_in_doubt;
};

/* Looks for it among those that were sent until then, the first of them. */
static __always_inline void look_for(const struct expectations *here, __u64 now, __u64 sent_until,
				     struct meeting *meeting)
{
	for (__u32 i = 0; i < MAX_EXPECTED; i++) {
		const struct expectation *one = &here->one[i];
		__u64 id = one->id;

		if (i >= here->count)
			break;
		if (one->sent > sent_until || one->until < now || bpf_map_lookup_elem(&met, &id))
			continue;
		if (meeting->id && one->label != meeting->label)
			meeting->is_in_doubt = 1;
		if (meeting->id && one->sent >= meeting->sent)
			continue;
		meeting->id = id;
		meeting->sent = one->sent;
		meeting->label = one->label;
	}
}

/* Not static, so that the verifier goes through its loops once. Adds to what was found at another place. */
__noinline int look_at(const struct expected_place *place, __u64 now, __u64 asked, struct meeting *meeting)
{
	const struct expectations *here;
	__u64 begins, was;

	if (!place || !meeting)
		return 0;
	here = bpf_map_lookup_elem(&expected, place);
	if (!here)
		return 0;
	was = meeting->id;
	begins = here->begins;
	asm volatile("" ::: "memory");
	look_for(here, now, asked, meeting);
	/* A round trip was measured once, and may have been a slow one. */
	if (meeting->id == was)
		look_for(here, now, now, meeting);
	if (meeting->id != was)
		meeting->canonical = here->canonical;
	asm volatile("" ::: "memory");
	/* The memory may have been given to another place meanwhile. */
	if (here->ends != begins)
		meeting->is_in_doubt = 1;
	return 0;
}

/* A connection of which nothing is known, and that stands now: it may be expected. */
static __always_inline void label_expected(struct bpf_sock_ops *ops, __u32 round_trips)
{
	struct expected_place place = {};
	__u64 now = bpf_ktime_get_ns(), asked, cookie;

	if (settings.has_netns_cookie)
		place.netns = bpf_get_netns_cookie(ops);
	place.near.in6_u.u6_addr32[0] = ops->local_ip6[0];
	place.near.in6_u.u6_addr32[1] = ops->local_ip6[1];
	place.near.in6_u.u6_addr32[2] = ops->local_ip6[2];
	place.near.in6_u.u6_addr32[3] = ops->local_ip6[3];
	place.far.in6_u.u6_addr32[0] = ops->remote_ip6[0];
	place.far.in6_u.u6_addr32[1] = ops->remote_ip6[1];
	place.far.in6_u.u6_addr32[2] = ops->remote_ip6[2];
	place.far.in6_u.u6_addr32[3] = ops->remote_ip6[3];
	/* Nine tenths of the round trips; the kernel keeps eighths of a microsecond. arrivals.py reckons alike. */
	asked = now - (__u64)(ops->srtt_us >> 3) * round_trips * 900;
	cookie = bpf_get_socket_cookie(ops);
	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		struct meeting meeting = {};

		place.near_port = bpf_htons(ops->local_port);
		place.far_port = 0;
		look_at(&place, now, asked, &meeting);
		place.near_port = 0;
		place.far_port = bpf_htons(bpf_ntohl(ops->remote_port));
		look_at(&place, now, asked, &meeting);
		if (!meeting.id || meeting.is_in_doubt)
			return;
		/* Another connection, or the agent, may be quicker. */
		if (bpf_map_update_elem(&met, &meeting.id, &cookie, BPF_NOEXIST))
			continue;
		if (meeting.label)
			give(ops, meeting.label | entropy_of(ops, meeting.canonical), meeting.id);
		return;
	}
}

/* The packet that the walk has asked to be called before. */
static __always_inline void label_waiting(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sock = ops->sk;
	struct labelled *known = sock ? bpf_sk_storage_get(&labelled, sock, 0, 0) : 0;

	if (!known || known->state != SOCKET_WAITING)
		return;
	if (known->label) {
		ops->sk_txhash = hash_of(known->label, spread_of(ops));
		known->state = SOCKET_LABELLED;
	} else {
		ops->sk_txhash = bpf_get_prandom_u32() | 1; /* 0 is no hash */
		known->state = SOCKET_GIVEN_BACK;
	}
	if (!known->asked_before)
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~EACH_PACKET);
}

SEC("sockops") int scitags_kernel_label(struct bpf_sock_ops *ops)
{
	__be32 place;

	if (ops->family != AF_INET6)
		return GO_ON;
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (is_ours(ops, &place))
			label_new(ops, place);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (is_ours(ops, &place) && !label_new(ops, place))
			label_expected(ops, 1);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (is_ours(ops, &place) && !label_new(ops, place))
			label_expected(ops, 2);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		label_waiting(ops);
		break;
	}
	return GO_ON;
}

static __always_inline void tell(struct bpf_iter__tcp *walk, const struct flow_key *key, const struct tcp6_sock *sock,
				 const struct labelled *known, int error)
{
	struct report report = {
		.key = *key,
		.label = known->label,
		.state = known->state,
		.error = error,
		.callbacks = sock->tcp.bpf_sock_ops_cb_flags,
	};

	bpf_seq_write(walk->meta->seq, &report, sizeof(report));
}

/* Called for each TCP socket of a network namespace. */
SEC("iter/tcp") int scitags_walk(struct bpf_iter__tcp *walk)
{
	struct sock_common *common = walk->sk_common;
	struct flow_key key = {};
	struct labelled *known;
	struct tcp6_sock *sock;
	__be32 *label;
	int flags, error, off = TXREHASH_OFF;
	__u64 expectation;
	__be32 place = 0;

	if (!common || common->skc_family != AF_INET6)
		return 0;
	key.src = common->skc_v6_rcv_saddr;
	key.dst = common->skc_v6_daddr;
	key.sport = bpf_htons(common->skc_num);
	key.dport = common->skc_dport;
	if (settings.has_places && !is_looked_into(common->skc_net.net->net_cookie, &place))
		return 0;
	key.protocol = bpf_htonl(IPPROTO_TCP) | place;
	label = bpf_map_lookup_elem(&labels, &key);
	sock = bpf_skc_to_tcp6_sock(common);
	if (!sock)
		return 0;
	known = bpf_sk_storage_get(&labelled, sock, 0, label ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!known)
		return 0;
	if (label ? known->label == *label : !known->label) {
		if (label)
			tell(walk, &key, sock, known, 0);
		return 0;
	}
	/* It was expected, and the agent has not decided yet whether it is what was meant. */
	expectation = known->expectation;
	if (!label && expectation) {
		__u64 *cookie = bpf_map_lookup_elem(&met, &expectation);

		if (cookie && *cookie)
			return 0;
	}
	if (!known->label) {
		known->state = why_no_label(sock, sock);
		if (known->state != SOCKET_LABELLED) {
			tell(walk, &key, sock, known, 0);
			return 0;
		}
	}
	flags = sock->tcp.bpf_sock_ops_cb_flags;
	if (label && !known->label) {
		known->rehash_before = ((struct sock *)sock)->sk_txrehash;
		known->asked_before = (flags & EACH_PACKET) != 0;
	} else if (known->state == SOCKET_LABELLED) {
		known->asked_before = (flags & EACH_PACKET) != 0;
	}
	if (!label)
		off = known->rehash_before;
	flags |= EACH_PACKET;
	known->label = label ? *label : 0;
	known->state = SOCKET_WAITING;
	error = bpf_setsockopt(sock, SOL_SOCKET, SO_TXREHASH, &off, sizeof(off));
	if (!error)
		error = bpf_setsockopt(sock, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
	if (error)
		known->state = SOCKET_REFUSED;
	tell(walk, &key, sock, known, error);
	return 0;
}
