//! The real programs under `BPF_PROG_TEST_RUN`: each test has a bpffs with maps that nobody else has meanwhile and a
//! network namespace of its own, and reads back verdict, packet, flow rows and counters.

#[cfg(not(netd_bpf_stub))]
mod affinity;
#[cfg(not(netd_bpf_stub))]
mod audit;
#[cfg(not(netd_bpf_stub))]
mod checksums;
#[cfg(not(netd_bpf_stub))]
mod clock;
#[cfg(not(netd_bpf_stub))]
mod conversations;
#[cfg(not(netd_bpf_stub))]
mod flows;
#[cfg(not(netd_bpf_stub))]
mod fragments;
#[cfg(not(netd_bpf_stub))]
pub(crate) mod frames;
#[cfg(not(netd_bpf_stub))]
mod growth;
#[cfg(not(netd_bpf_stub))]
mod held;
#[cfg(not(netd_bpf_stub))]
mod icmp;
#[cfg(not(netd_bpf_stub))]
mod judged;
#[cfg(not(netd_bpf_stub))]
mod moves;
#[cfg(not(netd_bpf_stub))]
mod mtu;
#[cfg(not(netd_bpf_stub))]
mod pieces;
#[cfg(not(netd_bpf_stub))]
mod pins;
#[cfg(not(netd_bpf_stub))]
mod policy;
#[cfg(not(netd_bpf_stub))]
mod pool;
#[cfg(not(netd_bpf_stub))]
mod ports;
#[cfg(not(netd_bpf_stub))]
mod programs;
#[cfg(not(netd_bpf_stub))]
mod promotion;
#[cfg(not(netd_bpf_stub))]
mod protocols;
#[cfg(not(netd_bpf_stub))]
mod reclaim;
#[cfg(not(netd_bpf_stub))]
mod reject;
#[cfg(not(netd_bpf_stub))]
mod remembered;
#[cfg(not(netd_bpf_stub))]
pub(crate) mod rig;
mod schema1;
#[cfg(not(netd_bpf_stub))]
mod services;
#[cfg(not(netd_bpf_stub))]
mod successors;
#[cfg(not(netd_bpf_stub))]
pub(crate) mod verifier;

#[cfg(netd_bpf_stub)]
#[test]
fn a_build_without_programs_says_so() {
    use super::config::{Audit, Config, Timeouts};
    use super::{Datapath, Error};

    let bpffs = "/nowhere".into();
    let config = Config {
        bpffs,
        flows: 1,
        flows_per_pod: 1,
        nursery: 1,
        affinity: 1,
        frontends: 1,
        backends: 1,
        slots: 1,
        pods: 1,
        policy_rows: 1,
        policy_ranges: 1,
        identities: 1,
        blocks: 1,
        timeouts: Timeouts::default(),
        audit: Audit::default(),
    };
    let error = Datapath::open(&config).map(drop).expect_err("there is nothing to load");
    assert!(matches!(error, Error::NoPrograms));
}
