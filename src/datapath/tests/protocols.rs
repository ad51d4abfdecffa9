//! What is neither TCP nor UDP: passed by address, never taken for one of them.

use super::frames::{TCP, UDP, packet, raw};
use super::rig::{Rig, isolated};
use netd_bpf::event::{path, reason};
use netd_bpf::flow::role;
use netd_bpf::service::kind;

const OK: i32 = 0;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
const SCTP: u8 = 132;

/// An SCTP INIT from port 1000 to port 80 (RFC 9260 §3.3.2), its checksum whatever it is.
const INIT: [u8; 32] = [
    0x03, 0xe8, 0, 80, 0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1,
    0, 0, 0, 1,
];

/// As it goes to a pod of this node: one hop further.
fn one_hop(frame: &[u8], v6: bool) -> Vec<u8> {
    let mut packet = packet(frame).to_vec();
    if v6 {
        packet[7] -= 1;
    } else {
        packet[8] -= 1;
        let sum = etherparse::Ipv4Header::from_slice(&packet).unwrap().0.calc_header_checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

#[test]
fn sctp_to_the_address_and_port_of_a_tcp_service_is_no_service() {
    isolated(|| {
        for (client, vip, backend) in
            [("10.0.0.1", "10.96.0.1", "10.0.0.2"), ("fd00::1", "fd96::1", "fd00::2")]
        {
            let rig = Rig::new();
            rig.service(vip, 80, TCP, &[(backend, 8080)]);
            rig.frontend(vip, 80, UDP, kind::BALANCE, 1);
            let init = raw(client, vip, SCTP, &INIT);
            let ran = rig.pod_sends(&init);
            assert_eq!((ran.verdict, &ran.packet), (OK, &init), "by address: the stack's, as it is");
            // Not even its refusal is TCP's.
            rig.frontend(vip, 80, TCP, kind::BALANCE, 0);
            let ran = rig.pod_sends(&init);
            assert_eq!((ran.verdict, &ran.packet), (OK, &init));
        }
    });
}

#[test]
fn sctp_gre_and_esp_go_from_pod_to_pod_as_they_are() {
    isolated(|| {
        let rig = Rig::new();
        for (v6, from, to) in [(false, "10.0.0.1", "10.0.0.2"), (true, "fd00::1", "fd00::2")] {
            for proto in [SCTP, 47, 50, 4, 41, 115, 253] {
                let there = raw(from, to, proto, &INIT);
                let ran = rig.pod_sends(&there);
                assert_eq!(ran.verdict, REDIRECT, "protocol {proto}");
                assert_eq!(packet(&ran.packet), one_hop(&there, v6), "protocol {proto}");
                let back = raw(to, from, proto, &answer());
                let ran = rig.pod_receives(&back);
                assert_eq!((ran.verdict, &ran.packet), (OK, &back), "protocol {proto}");
            }
        }
        let paths = rig.datapath.path_counts().unwrap();
        assert_eq!(paths[path::PEER as usize].1.packets, 14);
        // Each is a flow, answers included; SCTP's has ports.
        let flows = rig.datapath.flows().unwrap();
        assert_eq!(flows.len(), 14);
        for row in flows {
            let ports = row.key.low_port | row.key.high_port;
            assert_eq!(ports != 0, row.key.proto == SCTP, "{row:?}");
        }
    });
}

/// The INIT's way back: ports swapped.
fn answer() -> [u8; 32] {
    let mut answer = INIT;
    answer[..4].rotate_left(2);
    answer
}

#[test]
fn an_sctp_service_translates_addresses_and_leaves_the_rest() {
    isolated(|| {
        for (v6, client, vip, backend) in
            [(false, "10.0.0.1", "10.96.0.1", "10.0.0.2"), (true, "fd00::1", "fd96::1", "fd00::2")]
        {
            let rig = Rig::new();
            rig.service(vip, 80, SCTP, &[(backend, 80)]);
            for _ in 0..2 {
                let ran = rig.pod_sends(&raw(client, vip, SCTP, &INIT));
                assert_eq!(ran.verdict, REDIRECT);
                assert_eq!(packet(&ran.packet), one_hop(&raw(client, backend, SCTP, &INIT), v6));
                let ran = rig.pod_receives(&raw(backend, client, SCTP, &answer()));
                assert_eq!(ran.verdict, OK);
                assert_eq!(packet(&ran.packet), packet(&raw(vip, client, SCTP, &answer())));
            }
            let flows = rig.datapath.flows().unwrap();
            assert_eq!(flows.len(), 2, "{flows:?}");
            assert!(flows.iter().all(|row| row.key.proto == SCTP), "{flows:?}");
        }
    });
}

#[test]
fn an_sctp_association_that_would_need_another_port_is_refused_by_name() {
    isolated(|| {
        for (client, vips, backend) in [
            ("10.0.0.1", ["10.96.0.1", "10.96.0.2"], "10.0.0.2"),
            ("fd00::1", ["fd96::1", "fd96::2"], "fd00::2"),
        ] {
            let rig = Rig::new();
            for vip in vips {
                rig.service(vip, 80, SCTP, &[(backend, 80)]);
            }
            let [first, second] = vips.map(|vip| rig.pod_sends(&raw(client, vip, SCTP, &INIT)).verdict);
            assert_eq!((first, second), (REDIRECT, SHOT));
            let drops = rig.datapath.drop_counts().unwrap();
            assert_eq!(drops.iter().map(|(key, _)| key.reason).collect::<Vec<_>>(), [reason::NO_SOURCE_PORT]);
            assert_eq!(rig.datapath.flows().unwrap().len(), 2);
        }
    });
}

#[test]
fn a_tcp_service_s_bytes_in_another_protocol_are_no_tcp() {
    isolated(|| {
        let rig = Rig::new();
        rig.service("10.96.0.1", 80, TCP, &[("10.0.0.2", 8080)]);
        for proto in [47, 50, 4, 253] {
            let frame = raw("10.0.0.1", "10.96.0.1", proto, &INIT);
            let ran = rig.pod_sends(&frame);
            assert_eq!((ran.verdict, &ran.packet), (OK, &frame), "protocol {proto}");
        }
        let flows = rig.datapath.flows().unwrap();
        assert_eq!(flows.len(), 4, "a flow each");
        assert!(flows.iter().all(|row| row.flow.role == role::DIRECT && row.flow.service == 0), "{flows:?}");
    });
}
