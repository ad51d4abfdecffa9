use super::testing::Two;
use super::*;

fn addr(text: &str) -> netd_bpf::Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn told(event: &Drop) -> String {
    let dropped = describe(event, &Two);
    format!("{}  {}", dropped.packet(|address| Two.called(address)), dropped.message())
}

#[test]
fn events_are_told_in_words() {
    let event = Drop {
        source: addr("10.0.0.9"),
        destination: addr("fd00::1"),
        source_port: 1000_u16.to_be(),
        destination_port: 80_u16.to_be(),
        reason: reason::SPOOFED_SOURCE,
        stage: stage::POD_EGRESS,
        endpoint: 2,
        proto: 6,
        ..Drop::default()
    };
    let told = describe(&event, &Two);
    assert_eq!(
        (told.reason, told.stage, told.pod.as_deref()),
        ("spoofed_source", "pod_egress", Some("shop/web"))
    );
    assert_eq!((told.source.to_string().as_str(), told.source_port), ("10.0.0.9", 1000));
    assert_eq!((told.destination.to_string().as_str(), told.destination_port), ("fd00::1", 80));
    assert_eq!(
        (told.policy.as_ref(), told.message().as_str()),
        (None, "the source address is not the pod's")
    );
    assert_eq!(describe(&Drop { reason: 200, ..event }, &Two).reason, "unknown");
}

/// web (2) → api-1 (3), which is isolated for what it is sent.
fn denied() -> Drop {
    Drop {
        source: addr("10.0.0.2"),
        destination: addr("10.0.0.3"),
        source_port: 40_312_u16.to_be(),
        destination_port: 8080_u16.to_be(),
        reason: reason::INGRESS_DENIED,
        stage: stage::POD_EGRESS,
        endpoint: 3,
        set: 50,
        proto: 6,
        tcp_flags: 2,
        ethertype: 0x0800,
        ..Drop::default()
    }
}

#[test]
fn what_policy_denies_says_who_is_isolated_by_what() {
    let back = Drop {
        source: denied().destination,
        destination: denied().source,
        source_port: denied().destination_port,
        destination_port: denied().source_port,
        tcp_flags: 0x10,
        ..denied()
    };
    let events = [
        denied(),
        Drop { service: 4, ..denied() },
        Drop { reason: reason::EGRESS_DENIED, endpoint: 2, set: 51, ..denied() },
        Drop { rule: 2, proto: 17, ..denied() },
        // A connection that a new policy cuts: its answer is what comes first.
        back,
        Drop { reason: reason::EGRESS_DENIED, endpoint: 2, set: 51, ..back },
        Drop { set: set::CLOSED, ..denied() },
        Drop { set: 99, ..denied() },
        // A pod that went in between.
        Drop {
            endpoint: 8,
            source: addr("192.0.2.1"),
            proto: 1,
            source_port: 0,
            destination_port: 0,
            ..denied()
        },
    ];
    let lines: Vec<String> = events.iter().map(told).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    shop/web → shop/api-1:8080/tcp SYN  ingress of shop/api-1 is isolated by shop/default-deny and shop/api; no rule allows it
    shop/web → shop/api-1:8080/tcp (Service shop/api) SYN  ingress of shop/api-1 is isolated by shop/default-deny and shop/api; no rule allows it
    shop/web → shop/api-1:8080/tcp SYN  egress of shop/web is isolated by shop/web; no rule allows it
    shop/web → shop/api-1:8080/udp  ingress of shop/api-1 is isolated by shop/default-deny and shop/api; shop/api rule 2 denies it
    shop/api-1:8080/tcp → shop/web ACK  answers a flow that is not allowed any more: ingress of shop/api-1 is isolated by shop/default-deny and shop/api; no rule allows it
    shop/api-1:8080/tcp → shop/web ACK  answers a flow that is not allowed any more: egress of shop/web is isolated by shop/web; no rule allows it
    shop/web → shop/api-1:8080/tcp SYN  ingress of shop/api-1 is closed: its policies could not be put into effect: see netd status
    shop/web → shop/api-1:8080/tcp SYN  ingress of shop/api-1 is isolated by policies that are gone meanwhile; no rule allows it
    192.0.2.1 → shop/api-1/icmp  ingress of a pod that is gone is isolated by shop/default-deny and shop/api; no rule allows it
    ");
    assert_eq!(describe(&Drop { reason: reason::NO_BACKEND, ..denied() }, &Two).policy, None);
}

#[test]
fn a_flood_is_one_line_and_a_count() {
    let mut log = Log::default();
    let dropped = describe(&Drop { endpoint: 2, ..Drop::default() }, &Two);
    let start = Instant::now();
    for _ in 0..100 {
        log.note(&dropped, &Two, start);
    }
    assert_eq!(log.last.values().next().map(|(_, silent)| *silent), Some(99));
    log.note(&dropped, &Two, start + LOG_EVERY);
    assert_eq!(log.last.values().next().map(|(_, silent)| *silent), Some(0));
}

#[test]
fn flags_have_their_names() {
    assert_eq!([0x02, 0x12, 0x04, 0].map(tcp_flags), ["SYN", "SYN,ACK", "RST", "none"]);
}
