//! Pods that have the addresses of one that is gone: what that one left is not theirs.

use super::frames::{Segment, TCP, UDP, ip, read, tcp, udp};
use super::moves::FAMILIES;
use super::rig::{IFINDEX, Rig, isolated, pod};
use netd_bpf::flow::ORPHANED;
use netd_bpf::service::backend_state;

/// Number of the pod that comes after pod 1.
const SUCCESSOR: u32 = 3;

/// Pod 1 goes, and one with its addresses comes.
fn succeed(rig: &Rig) {
    rig.datapath.remove_pod(&pod(IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
    rig.upsert_pod(&pod(IFINDEX, SUCCESSOR, "10.0.0.1", "fd00::1")).unwrap();
}

/// A conversation of a client with the backend, which it knows by the name `to`.
fn talk(rig: &Rig, proto: u8, [client, to, backend]: [&str; 3]) {
    let make = |from: &str, to: &str, segment| {
        if proto == TCP { tcp(from, to, segment) } else { udp(from, to) }
    };
    let handshake = [(Segment::Syn, Segment::SynAck), (Segment::Ack, Segment::Ack)];
    for (question, answer) in handshake.into_iter().chain([(Segment::Ack, Segment::Ack); 2]) {
        let sent = read(&rig.pod_sends(&make(client, to, question)).packet);
        assert_eq!(sent.destination.to_string(), backend);
        let back = read(&rig.pod_receives(&make(backend, &sent.source.to_string(), answer)).packet);
        assert_eq!(
            (back.source.to_string(), back.destination.to_string()),
            (to.to_owned(), client.to_owned())
        );
    }
}

/// Whose the established rows are.
fn owners(rig: &Rig) -> Vec<u32> {
    let rows = rig.datapath.flows().unwrap();
    rows.iter().filter(|row| row.established).map(|row| row.flow.owner).collect()
}

fn pass(rig: &Rig) {
    rig.datapath.reclaim(&|| false).unwrap().unwrap();
}

#[test]
fn a_successor_has_flows_of_its_own_from_the_same_port() {
    isolated(|| {
        for [client, vip, backend] in FAMILIES {
            for proto in [TCP, UDP] {
                // Through a Service, straight to its backend, and one beside the other.
                for (names, rows) in
                    [(&[vip][..], 2), (&[backend], 1), (&[vip, backend], 4), (&[backend, vip], 3)]
                {
                    let rig = Rig::new();
                    rig.service(ip(vip), 80, proto, &[(ip(backend), 8080)]);
                    let talk_to_all = || names.iter().for_each(|to| talk(&rig, proto, [client, to, backend]));
                    talk_to_all();
                    assert_eq!(owners(&rig), vec![1; rows]);
                    succeed(&rig);
                    pass(&rig);
                    talk_to_all();
                    assert_eq!(owners(&rig), vec![SUCCESSOR; rows], "{names:?}");
                    assert_eq!(rig.datapath.share(SUCCESSOR).unwrap(), Some(rows as u64));
                    // The time of what the former left is over.
                    rig.datapath.gone.age(ORPHANED + 1);
                    pass(&rig);
                    assert_eq!(owners(&rig), vec![SUCCESSOR; rows], "{names:?}: taken in use");
                    talk_to_all();
                }
            }
        }
    });
}

#[test]
fn what_a_successor_resets_reaches_the_backend_that_has_it() {
    isolated(|| {
        for [client, vip, backend] in FAMILIES {
            let rig = Rig::new();
            rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
            talk(&rig, TCP, [client, vip, backend]);
            succeed(&rig);
            let other = if client.starts_with('[') { "fd01::2" } else { "10.1.0.2" };
            rig.backend(2, other, 8080, TCP, backend_state::ACTIVE, 1);
            rig.datapath.set_slots(0, &[2]).unwrap();
            let late = read(&rig.pod_receives(&tcp(backend, client, Segment::Ack)).packet);
            assert_eq!(late.source.to_string(), vip);
            let reset = read(&rig.pod_sends(&tcp(client, vip, Segment::Rst)).packet);
            assert_eq!(reset.destination.to_string(), backend);
        }
    });
}
