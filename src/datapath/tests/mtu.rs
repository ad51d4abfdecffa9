//! What is too long for the way to another node goes to the node's stack, which knows what to do about it.

use super::frames::{long_tcp, long_udp, raw};
use super::rig::{Rig, isolated, run};
use netd_bpf::event::path;

const OK: i32 = 0;
const REDIRECT: i32 = 7;

/// An uplink of 1400 bytes, one neighbour known and one not, and routes locked to 1300 bytes.
fn uplink() {
    for command in [
        "ip link add up0 mtu 1400 type veth peer name far0",
        "ip address add 192.0.2.1/24 dev up0",
        "ip address add 2001:db8::1/64 dev up0 nodad",
        "ip link set up0 up",
        "ip link set far0 up",
        "ip neighbor add 192.0.2.2 lladdr 02:00:00:00:00:02 dev up0 nud permanent",
        "ip neighbor add 2001:db8::2 lladdr 02:00:00:00:00:02 dev up0 nud permanent",
        "ip route add 10.1.0.0/24 via 192.0.2.2",
        "ip route add 10.2.0.0/24 via 192.0.2.3",
        "ip route add 10.3.0.0/24 via 192.0.2.2 mtu lock 1300",
        "ip -6 route add fd00:1::/64 via 2001:db8::2",
        "ip -6 route add fd00:2::/64 via 2001:db8::3",
        "ip -6 route add fd00:3::/64 via 2001:db8::2 mtu lock 1300",
        "sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv6.conf.all.forwarding=1",
    ] {
        run(&command.split(' ').collect::<Vec<_>>());
    }
}

/// Destinations, and what passes on the way there, from the IP header on.
const WAYS: [(&str, usize); 6] = [
    ("10.1.0.7:80", 1400),
    ("10.2.0.7:80", 1400),
    ("10.3.0.7:80", 1300),
    ("[fd00:1::7]:80", 1400),
    ("[fd00:2::7]:80", 1400),
    ("[fd00:3::7]:80", 1300),
];

/// The pod's own socket, and the length of the IP header.
fn own(to: &str) -> (&'static str, usize) {
    if to.starts_with('[') { ("[fd00::1]:1000", 40) } else { ("10.0.0.1:1000", 20) }
}

#[test]
fn a_packet_longer_than_its_way_is_the_stack_s() {
    isolated(|| {
        uplink();
        let rig = Rig::new();
        for (to, mtu) in WAYS {
            let (from, header) = own(to);
            for length in [100, mtu - 1, mtu, mtu + 1, mtu + 4, mtu + 5, 3000] {
                let expected = if length <= mtu { REDIRECT } else { OK };
                let frame = long_tcp(from, to, length - header - 20);
                assert_eq!(frame.len(), length + 14);
                assert_eq!(rig.pod_sends(&frame).verdict, expected, "{length} bytes of TCP to {to}");
                let ran = rig.pod_sends(&long_udp(from, to, length - header - 8));
                assert_eq!(ran.verdict, expected, "{length} bytes of UDP to {to}");
                if expected == OK {
                    assert_eq!(rig.pod_sends(&frame).packet, frame, "as it came");
                }
            }
        }
        assert_eq!(rig.datapath.path_counts().unwrap()[path::DROP as usize].1.packets, 0);
    });
}

#[test]
fn a_train_is_as_long_as_its_longest_segment() {
    isolated(|| {
        uplink();
        let rig = Rig::new();
        for (to, mtu) in WAYS {
            let (from, header) = own(to);
            for (segment, expected) in [(mtu - 1, REDIRECT), (mtu, REDIRECT), (mtu + 1, OK)] {
                let train = |header: usize| u32::try_from(segment - header).unwrap();
                let verdict = rig.pod_sends_train(&long_tcp(from, to, 3000), train(header + 20));
                assert_eq!(verdict, expected, "TCP to {to} in segments of {segment}");
                let verdict = rig.pod_sends_train(&long_udp(from, to, 3000), train(header + 8));
                assert_eq!(verdict, expected, "UDP to {to} in datagrams of {segment}");
            }
        }
        // The options of TCP are in each of its segments.
        let mut frame = long_tcp("10.0.0.1:1000", "10.1.0.7:80", 3000);
        frame[46] = 0x80;
        assert_eq!(rig.pod_sends_train(&frame, 1400 - 52), REDIRECT);
        assert_eq!(rig.pod_sends_train(&frame, 1400 - 51), OK);
        // Chunks of SCTP, each of its own length (`GSO_BY_FRAGS`): only the stack can measure them.
        let chunks = raw("10.0.0.1", "10.1.0.7", 132, &[1; 3000]);
        assert_eq!(rig.pod_sends_train(&chunks, 0xffff), OK);
    });
}

#[test]
fn a_pod_of_this_node_takes_any_length() {
    isolated(|| {
        let rig = Rig::new();
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            assert_eq!(rig.pod_sends(&long_tcp(from, to, 3000)).verdict, REDIRECT);
            assert_eq!(rig.pod_sends_train(&long_tcp(from, to, 3000), 1000), REDIRECT);
        }
    });
}
