use super::*;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(active: &[&str], draining: &[&str]) -> Pool {
    let mut pool = Pool::default();
    pool.set_ranges(
        &active.iter().map(|text| net(text)).collect::<Vec<_>>(),
        &draining.iter().map(|text| net(text)).collect::<Vec<_>>(),
    );
    pool
}

fn pod(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

#[test]
fn both_families_are_given_and_reserved_addresses_are_not() {
    let now = Instant::now();
    let mut pool = pool(&["10.0.0.0/30", "fd00::/126"], &[]);
    assert_eq!(pool.allocate(None, &[], now).unwrap(), [ip("10.0.0.1"), ip("fd00::1")]);
    assert_eq!(pool.allocate(None, &[], now).unwrap(), [ip("10.0.0.2"), ip("fd00::2")]);
    let error = pool.allocate(None, &[], now).unwrap_err();
    assert_eq!(error.to_string(), "no IPv4 address left: 10.0.0.0/30 (2 addresses, 2 used, 0 cooling)");
    assert!(error.is_retryable());
    assert_eq!(pool.used.len(), 4, "a request that fails for one family takes nothing of the other");
}

#[test]
fn ranges_are_tried_in_order_and_the_error_names_all() {
    let now = Instant::now();
    let mut pool = pool(&["10.0.0.0/30", "10.9.0.0/30"], &["10.5.0.0/29"]);
    pool.claim(ip("10.5.0.3"), None);
    let got: Vec<_> = (0..4).map(|_| pool.allocate(None, &[], now).unwrap()[0]).collect();
    assert_eq!(got, [ip("10.0.0.1"), ip("10.0.0.2"), ip("10.9.0.1"), ip("10.9.0.2")]);
    pool.release(ip("10.9.0.1"), now + Duration::from_secs(9));
    assert_eq!(
        pool.allocate(None, &[], now).unwrap_err().to_string(),
        "no IPv4 address left: 10.0.0.0/30 (2 addresses, 2 used, 0 cooling), \
         10.9.0.0/30 (2 addresses, 1 used, 1 cooling), 10.5.0.0/29 (draining, 6 addresses, 1 used, 0 cooling)"
    );
    assert_eq!(pool.allocate(None, &[], now + Duration::from_secs(9)).unwrap(), [ip("10.9.0.1")]);
}

#[test]
fn next_fit_goes_on_where_it_stopped() {
    let now = Instant::now();
    let mut pool = pool(&["10.0.0.0/29"], &[]);
    let first = pool.allocate(None, &[], now).unwrap()[0];
    pool.release(first, now);
    assert_eq!(pool.allocate(None, &[], now).unwrap(), [ip("10.0.0.2")]);
    for last in 3..=6 {
        assert_eq!(pool.allocate(None, &[], now).unwrap(), [ip(&format!("10.0.0.{last}"))]);
    }
    assert_eq!(pool.allocate(None, &[], now).unwrap(), [first], "and wraps around");
}

#[test]
fn a_part_of_a_range_can_drain() {
    let now = Instant::now();
    let mut pool = pool(&["10.0.0.0/29"], &["10.0.0.2/31"]);
    let got: Vec<_> = (0..4).map(|_| pool.allocate(None, &[], now).unwrap()[0]).collect();
    assert_eq!(got, ["10.0.0.1", "10.0.0.4", "10.0.0.5", "10.0.0.6"].map(ip));
    pool.set_ranges(&[net("10.0.0.0/29")], &[net("10.0.0.0/24")]);
    assert_eq!(pool.allocate(None, &[], now), Err(Error::NoRange), "all of it drains");
    assert_eq!(pool.probe(now), Err(Error::NoRange));
}

#[test]
fn huge_and_tiny_ranges() {
    let now = Instant::now();
    let mut huge = pool(&["::/0"], &[]);
    assert_eq!(huge.allocate(None, &[], now).unwrap(), [ip("::1")]);
    let top = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    assert_eq!(huge.allocate(None, &[top], now).unwrap(), [top]);
    huge.set_position(net("::/0"), top);
    assert_eq!(huge.allocate(None, &[], now).unwrap(), [ip("::2")]);
    for (text, size) in [("10.0.0.0/31", 2), ("10.0.0.9/32", 1), ("fd00::/127", 2), ("fd00::1/128", 1)] {
        let mut pool = pool(&[text], &[]);
        for _ in 0..size {
            pool.allocate(None, &[], now).unwrap();
        }
        assert!(matches!(pool.allocate(None, &[], now), Err(Error::Exhausted { .. })), "{text}");
    }
}

#[test]
fn fixed_addresses_and_their_refusals() {
    let now = Instant::now();
    let soon = now + Duration::from_millis(1500);
    let mut pool = pool(&["10.0.0.0/24", "fd00::/64"], &["10.1.0.0/24"]);
    let web = pod("web-0");
    let fixed = |pool: &mut Pool, who: &ObjectName, text: &str| {
        pool.allocate(Some(who), &parse_fixed(text)?, now).inspect_err(|_| {
            assert_eq!(pool.probe(now), Ok(()));
        })
    };
    assert_eq!(fixed(&mut pool, &web, "10.0.0.77, fd00::77").unwrap(), [ip("10.0.0.77"), ip("fd00::77")]);
    assert_eq!(fixed(&mut pool, &web, "fd00::78").unwrap(), [ip("10.0.0.1"), ip("fd00::78")]);
    let refusals = [
        ("10.0.0.77", "fixed address 10.0.0.77 is held by pod shop/web-0"),
        ("10.0.0.x", "netd.io/addresses: \"10.0.0.x\" is not an IP address"),
        (
            "10.0.0.5,10.0.0.6",
            "fixed addresses 10.0.0.5 and 10.0.0.6 are both IPv4, at most one of each family can be had",
        ),
        ("10.1.0.5", "fixed address 10.1.0.5 is in 10.1.0.0/24, which is draining"),
        (
            "10.0.0.255",
            "fixed address 10.0.0.255 is the network, broadcast or router anycast address of 10.0.0.0/24",
        ),
        ("fd00::", "fixed address fd00:: is the network, broadcast or router anycast address of fd00::/64"),
        (
            "192.0.2.1",
            "fixed address 192.0.2.1 is in none of this node's ranges: \
             10.0.0.0/24 (254 addresses, 2 used, 0 cooling), \
             10.1.0.0/24 (draining, 254 addresses, 0 used, 0 cooling)",
        ),
    ];
    for (text, message) in refusals {
        let error = fixed(&mut pool, &pod("other"), text).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(!error.is_retryable());
    }
    pool.release(ip("10.0.0.77"), soon);
    let error = fixed(&mut pool, &pod("other"), "10.0.0.77").unwrap_err();
    assert_eq!(
        error.to_string(),
        "fixed address 10.0.0.77 was released by pod shop/web-0 and rests for another 2 s"
    );
    assert!(error.is_retryable());
    assert_eq!(
        fixed(&mut pool, &web, "10.0.0.77").unwrap()[0],
        ip("10.0.0.77"),
        "its own pod need not wait for it"
    );
}

/// The ranges that operations choose among: small, so that they fill; overlapping in part.
const RANGES: [&str; 6] =
    ["10.0.0.0/29", "10.0.0.4/30", "10.0.1.0/30", "10.0.1.4/31", "fd00::/125", "fd00::8/127"];

#[derive(Clone, Debug)]
enum Step {
    Allocate { pod: u8, fixed: Option<u8> },
    Release { index: u8 },
    Wait { seconds: u8 },
    Ranges { active: u8, draining: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u8>(), prop::option::weighted(0.3, any::<u8>()))
            .prop_map(|(pod, fixed)| Step::Allocate { pod: pod % 4, fixed }),
        4 => any::<u8>().prop_map(|index| Step::Release { index }),
        2 => (0..8_u8).prop_map(|seconds| Step::Wait { seconds }),
        1 => (0..64_u8, 0..64_u8).prop_map(|(active, draining)| Step::Ranges {
            active, draining: draining & active.rotate_left(3) }),
    ]
}

/// The oracle: every address of every range in a table, no arithmetic.
#[derive(Default)]
struct Oracle {
    held: BTreeSet<IpAddr>,
    resting: HashMap<IpAddr, (u8, Instant)>,
    active: Vec<IpNet>,
    draining: Vec<IpNet>,
}

impl Oracle {
    fn usable(&self, family: Family) -> BTreeSet<IpAddr> {
        let draining = |address: &IpAddr| self.draining.iter().any(|range| range.contains(address));
        self.active
            .iter()
            .filter(|range| !self.draining.iter().any(|other| other.contains(*range)))
            .filter(|range| Family::of(range.addr()) == family)
            .flat_map(|range| {
                let all: Vec<IpAddr> = (0..1_u32 << (u32::from(range.max_prefix_len() - range.prefix_len())))
                    .map(|offset| match range.addr() {
                        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + offset).into()),
                        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + u128::from(offset)).into()),
                    })
                    .collect();
                let (skip, cut) = match (family, all.len()) {
                    (_, 1 | 2) => (0, 0),
                    (Family::V4, _) => (1, 1),
                    (Family::V6, _) => (1, 0),
                };
                all[skip..all.len() - cut].to_vec()
            })
            .filter(|address| !draining(address))
            .collect()
    }

    /// Whether an active range of the family exists that is not wholly draining.
    fn serves(&self, family: Family) -> bool {
        self.active.iter().any(|range| {
            Family::of(range.addr()) == family && !self.draining.iter().any(|other| other.contains(range))
        })
    }

    fn free(&self, address: &IpAddr, pod: Option<u8>, now: Instant) -> bool {
        !self.held.contains(address)
            && self.resting.get(address).is_none_or(|(last, until)| *until <= now || pod == Some(*last))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn agrees_with_a_table_of_all_addresses(steps in prop::collection::vec(step(), 1..120)) {
        let ranges = RANGES.map(net);
        let choose = |bits: u8| -> Vec<IpNet> {
            ranges.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, net)| *net).collect()
        };
        let names = ["a", "b", "c", "d"].map(pod);
        let mut now = Instant::now();
        let (mut pool, mut oracle) = (Pool::default(), Oracle::default());
        oracle.active = choose(0b01_0111);
        pool.set_ranges(&oracle.active, &[]);
        let mut owner: HashMap<IpAddr, u8> = HashMap::new();
        for step in steps {
            match step {
                Step::Wait { seconds } => now += Duration::from_secs(seconds.into()),
                Step::Ranges { active, draining } => {
                    oracle.active = choose(active);
                    oracle.draining = choose(draining);
                    pool.set_ranges(&oracle.active, &oracle.draining);
                }
                Step::Release { index } => {
                    let Some(address) = oracle.held.iter().nth(usize::from(index) % 16).copied() else { continue };
                    let until = now + Duration::from_secs(5);
                    prop_assert!(pool.release(address, until));
                    prop_assert!(!pool.release(address, until));
                    oracle.held.remove(&address);
                    oracle.resting.insert(address, (owner[&address], until));
                }
                Step::Allocate { pod, fixed } => {
                    let fixed: Vec<IpAddr> = fixed.map(|byte| {
                        if byte & 64 == 0 { ip(&format!("10.0.{}.{}", byte >> 4 & 1, byte & 15)) }
                        else { ip(&format!("fd00::{:x}", byte & 15)) }
                    }).into_iter().collect();
                    let before = pool.clone();
                    let got = pool.allocate(Some(&names[usize::from(pod)]), &fixed, now);
                    let mut possible = true;
                    let mut families = 0;
                    for family in [Family::V4, Family::V6] {
                        let usable = oracle.usable(family);
                        if let Some(address) = fixed.iter().find(|address| Family::of(**address) == family) {
                            families += 1;
                            possible &= usable.contains(address) && oracle.free(address, Some(pod), now);
                        } else if oracle.serves(family) {
                            families += 1;
                            possible &= usable.iter().any(|address| oracle.free(address, None, now));
                        }
                    }
                    match got {
                        Ok(addresses) => {
                            prop_assert!(possible, "{addresses:?} given");
                            prop_assert_eq!(addresses.len(), families);
                            for address in addresses {
                                let asked = fixed.contains(&address).then_some(pod);
                                prop_assert!(oracle.usable(Family::of(address)).contains(&address));
                                prop_assert!(oracle.free(&address, asked, now), "{} is not free", address);
                                oracle.held.insert(address);
                                oracle.resting.remove(&address);
                                owner.insert(address, pod);
                            }
                        }
                        Err(error) => {
                            prop_assert!(!possible || families == 0, "refused: {error}");
                            prop_assert_eq!(&before, &pool, "a refusal changes nothing");
                        }
                    }
                }
            }
            pool.expire(now);
            oracle.resting.retain(|_, (_, until)| *until > now);
            prop_assert!(pool.used.keys().eq(oracle.held.iter()));
            prop_assert_eq!(pool.cooling.len(), oracle.resting.len());
        }
    }
}
