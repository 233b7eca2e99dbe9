// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Has the kernel itself write the flow label of TCP connections: no program runs for their packets.
 *
 * The kernel makes the label of a packet from the hash of its socket (net.ipv6.auto_flowlabels), and a sock_ops
 * program may choose that hash. A connection that is known when it opens gets it then. One that is open already is
 * found by a walk over all sockets, which asks for a callback: the kernel calls before the next packet leaves, the
 * hash is set, and the callback is taken back.
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
#define SO_TXREHASH 74
#define TXREHASH_OFF 0
#define TXREHASH_DEFAULT -1
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008
#define GO_ON 1
#define LABEL_MASK bpf_htonl(0x000fffff)
/* Called for every packet of the socket, before its header is made. */
#define EACH_PACKET BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG

/* The kernel's own, as much as is looked at; libbpf finds where it is in the kernel that runs. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct sock_common {
	unsigned short skc_family;
	__u16 skc_num;
	__be16 skc_dport;
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

static __always_inline int is_ours(struct bpf_sock_ops *ops)
{
	return !settings.has_netns_cookie || !settings.netns || bpf_get_netns_cookie(ops) == settings.netns;
}

/* A connection that opens: what is known of it already decides of its first packet on. */
static __always_inline void label_new(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sock = ops->sk;
	struct flow_key key;
	struct labelled *known;
	int off = TXREHASH_OFF, before;
	__be32 *label;

	fill_key(ops, &key);
	label = bpf_map_lookup_elem(&labels, &key);
	if (!label || !sock || !is_ours(ops))
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
	known->label = *label;
	known->state = SOCKET_LABELLED;
	ops->sk_txhash = hash_of(*label, spread_of(ops));
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
	if (ops->family != AF_INET6)
		return GO_ON;
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		label_new(ops);
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

	if (!common || common->skc_family != AF_INET6)
		return 0;
	key.src = common->skc_v6_rcv_saddr;
	key.dst = common->skc_v6_daddr;
	key.sport = bpf_htons(common->skc_num);
	key.dport = common->skc_dport;
	key.protocol = bpf_htonl(IPPROTO_TCP);
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
	if (!known->label && sock->inet6.flow_label) {
		known->state = SOCKET_OWN_LABEL;
		tell(walk, &key, sock, known, 0);
		return 0;
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
