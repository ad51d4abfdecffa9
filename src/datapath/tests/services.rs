//! Rows of the Service tables as the programs read them: torn ones, and ids of two Services.

use super::frames::{Segment, TCP, UDP, addr, read, tcp, udp};
use super::rig::{Rig, SERVICE, frontend_key, isolated};
use netd_bpf::Addr;
use netd_bpf::event::reason;
use netd_bpf::service::{Backend, Frontend, FrontendKey, backend_state, seal};
use proptest::prelude::*;

const SHOT: i32 = 2;
const VIPS: [(&str, &str, &str, &str, &str); 2] = [
    ("10.0.0.1:1000", "10.96.0.1", "10.96.0.2", "10.1.0.1", "10.1.0.2"),
    ("[fd00::1]:1000", "fd96::1", "fd96::2", "fd01::1", "fd01::2"),
];

fn socket(ip: &str) -> String {
    std::net::SocketAddr::new(ip.parse().unwrap(), 80).to_string()
}

/// Where a datagram from the client to a VIP goes.
fn goes_to(rig: &Rig, client: &str, vip: &str) -> String {
    read(&rig.pod_sends(&udp(client, &socket(vip))).packet).destination.ip().to_string()
}

fn backend(ip: &str, service: u32, state: u8) -> Backend {
    Backend { addr: addr(ip), port: 80_u16.to_be(), proto: UDP, state, generation: 1, service }
}

/// Two Services of the numbers 1 and 2, each with one slot that names this id.
fn two_services(rig: &Rig, vips: [&str; 2], ids: [u32; 2]) {
    rig.datapath.set_slots(0, &ids).unwrap();
    for ((vip, service), slot_base) in vips.into_iter().zip(1..).zip(0..) {
        let row = Frontend { service, slot_base, backends: 1, ..Frontend::default() };
        rig.datapath.set_frontend(&frontend_key(vip, 80, UDP), &row).unwrap();
    }
}

#[test]
fn udp_moves_when_its_backend_leaves_one_service_of_two() {
    isolated(|| {
        let rig = Rig::new();
        for (client, one, two, leaving, other) in VIPS {
            rig.forget();
            for (id, ip, service) in [(1, leaving, 1), (2, leaving, 2), (3, other, 1)] {
                rig.datapath.set_backend(id, &backend(ip, service, backend_state::ACTIVE)).unwrap();
            }
            two_services(&rig, [one, two], [1, 2]);
            assert_eq!([goes_to(&rig, client, one), goes_to(&rig, client, two)], [leaving, leaving]);
            rig.datapath.set_slots(0, &[3]).unwrap();
            rig.datapath.set_backend(1, &backend(leaving, 1, backend_state::TERMINATING)).unwrap();
            assert_eq!([goes_to(&rig, client, one), goes_to(&rig, client, two)], [other, leaving]);
        }
    });
}

#[test]
fn udp_moves_when_its_backends_id_is_another_endpoints_of_the_same_service() {
    isolated(|| {
        let rig = Rig::new();
        for (client, vip, _, former, next) in VIPS {
            for proto in [UDP, TCP] {
                rig.forget();
                rig.service(vip, 80, proto, &[(former, 80)]);
                let send = |segment| {
                    let to = socket(vip);
                    let frame = if proto == TCP { tcp(client, &to, segment) } else { udp(client, &to) };
                    read(&rig.pod_sends(&frame).packet).destination.ip().to_string()
                };
                assert_eq!(send(Segment::Syn), former);
                // In use at every look, only given out once more meanwhile.
                rig.backend(1, next, 80, proto, backend_state::ACTIVE, 2);
                let open = if proto == TCP { former } else { next };
                assert_eq!(send(Segment::Ack), open);
                assert_eq!(send(Segment::Syn), next, "a new one");
            }
        }
    });
}

#[test]
fn an_id_that_says_no_service_is_anybodys_until_it_does() {
    isolated(|| {
        let rig = Rig::new();
        for (client, one, two, shared, other) in VIPS {
            rig.forget();
            rig.datapath.set_backend(1, &backend(shared, 0, backend_state::ACTIVE)).unwrap();
            rig.datapath.set_backend(2, &backend(other, 2, backend_state::ACTIVE)).unwrap();
            two_services(&rig, [one, two], [1, 1]);
            let both = || [goes_to(&rig, client, one), goes_to(&rig, client, two)];
            assert_eq!(both(), [shared, shared]);
            // As the agent parts them: the second has an id of its own, then the first keeps the old one.
            rig.datapath.set_slots(0, &[1, 2]).unwrap();
            assert_eq!(both(), [shared, shared], "open flows stay");
            rig.datapath.set_backend(1, &backend(shared, 1, backend_state::ACTIVE)).unwrap();
            assert_eq!(both(), [shared, other]);
        }
    });
}

#[test]
fn endpoints_that_terminate_but_are_all_there_is_keep_their_flows() {
    isolated(|| {
        let rig = Rig::new();
        for (client, vip, _, first, second) in VIPS {
            for proto in [TCP, UDP] {
                rig.forget();
                // What is in a Service's slots is ACTIVE, whatever its pod is about to do.
                rig.service(vip, 80, proto, &[(first, 80), (second, 80)]);
                let send = |port: u16, segment| {
                    let from = client.replace("1000", &port.to_string());
                    let to = socket(vip);
                    let frame = if proto == TCP { tcp(&from, &to, segment) } else { udp(&from, &to) };
                    read(&rig.pod_sends(&frame).packet).destination
                };
                for port in 1000..1020 {
                    let chosen = send(port, Segment::Syn);
                    for _ in 0..10 {
                        assert_eq!(send(port, Segment::Ack), chosen);
                    }
                }
            }
        }
    });
}

#[test]
fn a_torn_row_is_dropped_and_counted() {
    isolated(|| {
        let rig = Rig::new();
        let mut torn = 0;
        for (client, vip, neighbour, ip, _) in VIPS {
            for proto in [TCP, UDP] {
                rig.service(vip, 80, proto, &[(ip, 8080)]);
                let (key, near) = (frontend_key(vip, 80, proto), frontend_key(neighbour, 80, proto));
                let row = Frontend { service: SERVICE, backends: 1, ..Frontend::default() };
                let sealed = Frontend { seal: seal(&key, &row), ..row };
                let broken = [
                    Frontend { generation: 1, ..sealed },
                    Frontend { backends: 2, ..sealed },
                    Frontend { seal: 0, ..sealed },
                    // Whole, but another's.
                    Frontend { seal: seal(&near, &row), ..row },
                ];
                for (number, row) in broken.into_iter().enumerate() {
                    rig.raw_frontend(&key, &row);
                    let frame = if proto == TCP {
                        tcp(client, &socket(vip), Segment::Syn)
                    } else {
                        udp(client, &socket(vip))
                    };
                    assert_eq!(rig.pod_sends(&frame).verdict, SHOT, "{vip}: row {number}");
                    torn += 1;
                    assert_eq!(rig.drops(reason::TORN_SERVICE), torn);
                    let told: Vec<_> = rig.datapath.frontends().unwrap();
                    assert_ne!(told.iter().find(|(at, _)| *at == key).unwrap().1.seal, 0, "row {number}");
                }
                rig.raw_frontend(&key, &sealed);
                assert!(rig.datapath.frontends().unwrap().contains(&(key, row)));
            }
        }
        assert_eq!(rig.datapath.flows().unwrap(), []);
    });
}

/// Keys and rows as clusters have them, which differ in a few bits: addresses of one network in their last
/// byte, two networks in one byte more.
fn keyed_row() -> impl Strategy<Value = (FrontendKey, Frontend)> {
    let few = |top: u32| prop_oneof![4 => 0..4_u32, 1 => 0..top];
    let addr =
        (0..2_u8, prop_oneof![Just(1_u8), any::<u8>()], any::<bool>()).prop_map(|(network, last, v6)| {
            let mut bytes =
                if v6 { [0_u8; 16] } else { [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 0] };
            if v6 {
                (bytes[0], bytes[3]) = (0xfd, 0x96 + network);
            }
            bytes[15] = last;
            let word =
                |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            Addr([word(0), word(4), word(8), word(12)])
        });
    let key = (addr, 79..82_u16, prop_oneof![Just(TCP), Just(UDP)], 0..2_u8)
        .prop_map(|(addr, port, proto, scope)| FrontendKey { addr, port: port.to_be(), proto, scope });
    let row = (few(65_536), few(262_144), 0..4_u16, 0..4_u16, 0..4_u16, few(86_400), few(u32::MAX));
    (key, row).prop_map(
        |(key, (service, slot_base, backends, local, flags, affinity_seconds, generation))| {
            let row = Frontend {
                service,
                slot_base,
                backends,
                backends_local: local,
                flags,
                affinity_seconds,
                generation,
                ..Frontend::default()
            };
            (key, Frontend { seal: seal(&key, &row), ..row })
        },
    )
}

/// The words of `a` where `mask` has a bit, else those of `b`.
fn mix(a: &Frontend, b: &Frontend, mask: u8) -> Frontend {
    let from = |bit: u8| if mask & 1 << bit != 0 { a } else { b };
    Frontend {
        service: from(0).service,
        slot_base: from(1).slot_base,
        backends: from(2).backends,
        backends_local: from(2).backends_local,
        flags: from(3).flags,
        kind: from(3).kind,
        pad: from(3).pad,
        affinity_seconds: from(4).affinity_seconds,
        generation: from(5).generation,
        seal: from(6).seal,
    }
}

proptest! {
    // Two seals are equal by chance once in four thousand million.
    #![proptest_config(ProptestConfig::with_cases(2_048))]

    /// Whatever part of another row is read with a key, of its own or of another frontend's former row.
    #[test]
    fn a_seal_tells_every_mix_of_two_rows(
        (key, row) in keyed_row(),
        (near, other) in keyed_row(),
        own: bool,
    ) {
        let own = own || near == key;
        let other = if own { Frontend { seal: seal(&key, &other), ..other } } else { other };
        for mask in 0..0x80 {
            let mixed = mix(&row, &other, mask);
            let whole = mixed == row || own && mixed == other;
            prop_assert_eq!(mixed.seal == seal(&key, &mixed), whole, "{:?}", mixed);
        }
    }
}
