//! NetworkPolicy as Kubernetes' own network tests ask for it: one test for each of their titles, in the same words as
//! far as they say what is meant, on real packets. Each looks at the whole table of nine pods, by TCP and UDP, at both
//! ports, by IPv4 and IPv6. (SCTP between pods is tested where the programs are run by themselves.)
#![cfg(not(netd_bpf_stub))]

mod netpol {
    mod api;
    mod changes;
    mod egress;
    mod isolation;
    mod peers;
    mod ports;
    mod stacks;
    mod udp;
}
