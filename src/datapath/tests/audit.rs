//! New flows as the programs tell them.

use super::frames::{Segment, TCP, addr, tcp, udp};
use super::rig::{IFINDEX, Rig, SERVICE, isolated};
use crate::datapath::locked;
use netd_bpf::event::{OPENED, reason, stage};

/// How many events there are; they are gone then.
fn events(rig: &Rig) -> usize {
    let mut events = locked(&rig.datapath.events);
    let ring = events.as_mut().expect("nobody took it");
    let mut count = 0;
    while ring.next().is_some() {
        count += 1;
    }
    count
}

fn open(rig: &Rig, ports: std::ops::Range<u16>) {
    for port in ports {
        rig.pod_sends(&udp(&format!("10.0.0.1:{port}"), "10.0.0.2:53"));
    }
}

#[test]
fn a_new_flow_is_told_once_with_its_service_and_backend() {
    isolated(|| {
        let rig = Rig::fresh();
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
        let (syn, ack) = (Segment::Syn, Segment::Ack);
        rig.pod_sends(&tcp("10.0.0.1:1000", "10.96.0.1:80", syn));
        assert_eq!(events(&rig), 0, "off");
        rig.datapath.set_flow_audit(1000).unwrap();
        rig.pod_sends(&tcp("10.0.0.1:1001", "10.96.0.1:80", syn));
        rig.pod_sends(&tcp("10.0.0.1:1001", "10.96.0.1:80", ack));
        rig.pod_sends(&tcp("10.0.0.1:1000", "10.96.0.1:80", ack));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let mut ring = {
            let _inside = runtime.enter();
            rig.datapath.take_events().unwrap().expect("nobody took it")
        };
        let event = runtime.block_on(ring.next()).unwrap();
        assert_eq!((event.reason, event.stage, event.ifindex), (OPENED, stage::POD_EGRESS, IFINDEX));
        assert_eq!((event.source, event.source_port), (addr("10.0.0.1"), 1001_u16.to_be()));
        assert_eq!((event.destination, event.destination_port), (addr("10.96.0.1"), 80_u16.to_be()));
        assert_eq!((event.service, event.backend, event.endpoint), (SERVICE, 1, 1));
        assert_eq!((event.rule, event.ingress_rule, event.set), (0, 0, 0), "no policy was asked");
        // What comes next is of the next packet that is told: of a known flow there was nothing in between.
        rig.pod_sends(&tcp("10.0.0.9:7", "10.0.0.2:80", syn));
        assert_eq!(runtime.block_on(ring.next()).unwrap().reason, reason::SPOOFED_SOURCE);
    });
}

#[test]
fn what_is_beyond_the_rate_is_counted() {
    const FLOWS: u16 = 200;
    isolated(|| {
        let rig = Rig::fresh();
        assert_eq!(rig.datapath.untold_flows().unwrap(), 0);
        rig.datapath.set_flow_audit(1).unwrap();
        open(&rig, 1000..1000 + FLOWS);
        let (told, untold) = (events(&rig), rig.datapath.untold_flows().unwrap());
        assert_eq!(told as u64 + untold, u64::from(FLOWS));
        // One for each CPU and second.
        assert!(told > 0 && untold > 0, "{told} told, {untold} not");
        rig.datapath.set_flow_audit(0).unwrap();
        open(&rig, 3000..3010);
        assert_eq!((events(&rig), rig.datapath.untold_flows().unwrap()), (0, untold));
    });
}
