//! Rows of schema 1 and ours, there and back: for any row, not for those that somebody thought of.

use netd_bpf::flow::{Flow, FlowKey, flow_flag, role};
use netd_bpf::{Addr, schema1};
use proptest::prelude::*;

fn key() -> impl Strategy<Value = FlowKey> {
    (
        any::<[u32; 4]>(),
        any::<[u32; 4]>(),
        any::<(u16, u16)>(),
        prop_oneof![Just(6_u8), Just(17), any::<u8>()],
    )
        .prop_map(|(low, high, (low_port, high_port), proto)| FlowKey {
            low: Addr(low),
            high: Addr(high),
            low_port,
            high_port,
            proto,
            ..FlowKey::default()
        })
}

fn row() -> impl Strategy<Value = schema1::Flow> {
    let what = (role::DIRECT..=role::REPLY, any::<u8>(), any::<u16>(), any::<[u32; 4]>());
    (what, any::<[u32; 5]>()).prop_map(|((role, flags, xlat_port, xlat_addr), words)| {
        let [service, backend, backend_generation, created, last_seen] = words;
        schema1::Flow {
            role,
            flags,
            xlat_port,
            xlat_addr: Addr(xlat_addr),
            service,
            backend,
            backend_generation,
            created,
            last_seen,
            // The others no program of schema 1 wrote.
            ..schema1::Flow::default()
        }
    })
}

proptest! {
    #[test]
    fn a_row_comes_back_as_it_was(key in key(), row in row()) {
        let (mut ours, mut again) = (Flow::default(), schema1::Flow::default());
        row.import(&key, &mut ours);
        prop_assert!(schema1::Flow::export(&ours, &key, &mut again));
        prop_assert_eq!(again, row);
        // Twice the same: a second pass over the table finds the flow that the first one brought.
        let mut twice = Flow { turns: 7, owner: 7, client_port: 7, ..ours };
        again.import(&key, &mut twice);
        prop_assert_eq!(twice, ours);
        prop_assert!(ours.same(&twice));
    }

    #[test]
    fn only_what_is_over_or_was_not_answered_stays_in_the_nursery(key in key(), row in row()) {
        let mut ours = Flow::default();
        row.import(&key, &mut ours);
        let established = ours.flags & flow_flag::CONFIRMED != 0;
        if established {
            prop_assert!(ours.flags & flow_flag::REPLIED != 0);
            prop_assert!(key.proto != 6 || !ours.done());
        } else if key.proto == 6 && ours.flags & flow_flag::REPLIED != 0 {
            prop_assert!(ours.done());
        }
    }
}
