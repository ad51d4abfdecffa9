//! Lists: what a set says to one identity, as ranges of ports with the rule that allows them.
//!
//! Where several rules allow a port, the first tells: by the policy's name, then by its place there.

use super::compile::{Port, PortName};
use super::desired::List;
use netd_bpf::policy::{Decision, Range, action, point, tier};
use std::collections::BTreeMap;

/// What a rule decides.
const fn allow(rule: u32) -> Decision {
    Decision { rule, action: action::ALLOW, tier: tier::NAMESPACE, pad: 0 }
}

/// A list from rules in their order: each one's number, and its ports, if it does not allow all. `resolve` finds
/// the number of a named port.
pub(super) fn build<'r>(
    rules: impl Iterator<Item = (u32, Option<&'r [Port]>)>,
    resolve: impl Fn(&PortName) -> Option<u16>,
) -> List {
    let mut covered = Covered { free: BTreeMap::from([(0, u32::MAX)]), by: Vec::new() };
    let mut otherwise = Decision::default();
    for (rule, ports) in rules {
        let Some(ports) = ports else {
            // Nobody comes behind a rule that allows all.
            otherwise = allow(rule);
            break;
        };
        for port in ports {
            match port {
                Port::Range(first, last) => covered.cover(*first, *last, rule),
                Port::Named(name) => {
                    if let Some(number) = resolve(name) {
                        let at = point(name.proto, number);
                        covered.cover(at, at, rule);
                    }
                }
            }
        }
    }
    covered.by.sort_unstable();
    let mut ranges: Vec<Range> = Vec::with_capacity(covered.by.len());
    for (first, last, rule) in covered.by {
        match ranges.last_mut() {
            Some(before) if before.decision.rule == rule && before.last + 1 == first => before.last = last,
            _ => ranges.push(Range { first, last, decision: allow(rule) }),
        }
    }
    List { ranges, otherwise }
}

/// Who has which ports.
struct Covered {
    /// What nobody has yet: from the first to the last.
    free: BTreeMap<u32, u32>,
    /// First, last, and the rule.
    by: Vec<(u32, u32, u32)>,
}

impl Covered {
    /// Gives a rule what of a range nobody has. Costs what it gives: a range that others have costs one look.
    fn cover(&mut self, first: u32, last: u32, rule: u32) {
        let mut up_to = last;
        // From the end on; what begins before the range may reach into it.
        while let Some((start, end)) =
            self.free.range(..=up_to).next_back().map(|(start, end)| (*start, *end))
            && end >= first
        {
            self.free.remove(&start);
            if end > last {
                self.free.insert(last + 1, end);
            }
            self.by.push((start.max(first), end.min(last), rule));
            if start < first {
                self.free.insert(start, first - 1);
            }
            match start.checked_sub(1) {
                Some(before) if start > first => up_to = before,
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(rules: &[(u32, Option<Vec<Port>>)]) -> List {
        build(rules.iter().map(|(rule, ports)| (*rule, ports.as_deref())), |_| None)
    }

    #[test]
    fn the_first_rule_tells_and_what_it_leaves_is_the_next_ones() {
        let found = list(&[
            (7, Some(vec![Port::Range(20, 30), Port::Range(31, 40)])),
            (8, Some(vec![Port::Range(10, 50), Port::Range(90, 90)])),
            (9, None),
            (10, Some(vec![Port::Range(200, 300)])),
        ]);
        let ranges: Vec<_> =
            found.ranges.iter().map(|one| (one.first, one.last, one.decision.rule)).collect();
        assert_eq!(ranges, [(10, 19, 8), (20, 40, 7), (41, 50, 8), (90, 90, 8)]);
        assert_eq!(found.otherwise, allow(9));
        assert_eq!(list(&[]), List::default());
    }

    #[test]
    fn a_name_that_leads_nowhere_allows_nothing() {
        let ports = [Port::Named(PortName { proto: 6, name: "web".into() })];
        let none = build([(3, Some(&ports[..]))].into_iter(), |_| None);
        assert_eq!(none, List::default());
        let some = build([(3, Some(&ports[..]))].into_iter(), |_| Some(80));
        assert_eq!(some.ranges, [Range { first: 6 << 16 | 80, last: 6 << 16 | 80, decision: allow(3) }]);
    }

    #[test]
    fn many_ranges_over_many_others_leave_each_port_to_its_first_rule() {
        let odd = (0..20_000).map(|at| Port::Range(2 * at + 1, 2 * at + 1)).collect();
        let wide = |rule| (rule, Some(vec![Port::Range(0, 40_000)]));
        let rules: Vec<_> = std::iter::once((1, Some(odd))).chain((2..20_000).map(wide)).collect();
        let found = list(&rules);
        assert_eq!(found.ranges.len(), 40_001);
        let rule = |at| found.decide(at).rule;
        assert_eq!([0, 1, 2, 39_999, 40_000, 40_001].map(rule), [2, 1, 2, 1, 2, 0]);
    }

    proptest! {
        #[test]
        fn a_list_says_what_the_first_of_its_rules_says(
            rules in proptest::collection::vec(
                proptest::option::weighted(0.9, proptest::collection::vec((0_u32..40, 0_u32..12), 0..4)),
                0..6,
            ),
        ) {
            let ports = |spans: &Vec<(u32, u32)>| spans.iter().map(|(at, len)| Port::Range(*at, at + len)).collect();
            let rules: Vec<(u32, Option<Vec<Port>>)> =
                (1..).zip(&rules).map(|(rule, spans)| (rule, spans.as_ref().map(ports))).collect();
            let found = list(&rules);
            prop_assert!(found.ranges.windows(2).all(|two| two[0].last < two[1].first));
            for at in 0..60 {
                let right = rules.iter().find(|(_, ports)| ports.as_ref().is_none_or(|ports| {
                    ports.iter().any(|port| matches!(port, Port::Range(first, last) if (*first..=*last).contains(&at)))
                }));
                prop_assert_eq!(found.decide(at), right.map_or(Decision::default(), |(rule, _)| allow(*rule)));
            }
        }
    }
}
