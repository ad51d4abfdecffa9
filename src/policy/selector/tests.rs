use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: key.into(),
        operator: operator.into(),
        values: (!values.is_empty()).then(|| values.iter().map(|&value| value.into()).collect()),
    }
}

fn selector(labels: &[(&str, &str)], expressions: Vec<LabelSelectorRequirement>) -> Selector {
    let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let selector = LabelSelector { match_labels: Some(labels), match_expressions: Some(expressions) };
    Selector::compile(&selector).unwrap()
}

fn matches(selector: &Selector, labels: &[(&str, &str)]) -> bool {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    selector.matches(|key| labels.get(key).copied())
}

#[test]
fn an_empty_selector_matches_everything() {
    let empty = Selector::compile(&LabelSelector::default()).unwrap();
    assert!(matches(&empty, &[]) && matches(&empty, &[("a", "1")]));
    assert_eq!((empty.equality(), selector(&[], vec![])), (None, empty.clone()));
}

#[test]
fn each_operator_as_the_api_has_it() {
    let cases: [(&str, &[&str], [bool; 3]); 4] = [
        // a=1, a=3, no a
        ("In", &["2", "1"], [true, false, false]),
        ("NotIn", &["2", "1"], [false, true, true]),
        ("Exists", &[], [true, true, false]),
        ("DoesNotExist", &[], [false, false, true]),
    ];
    for (operator, values, expected) in cases {
        let one = selector(&[], vec![expression("a", operator, values)]);
        let labels: [&[(&str, &str)]; 3] = [&[("a", "1")], &[("a", "3")], &[("b", "1")]];
        assert_eq!(labels.map(|labels| matches(&one, labels)), expected, "{operator}");
    }
    let unknown = LabelSelector {
        match_expressions: Some(vec![expression("a", "Gt", &["1"])]),
        ..LabelSelector::default()
    };
    assert_eq!(Selector::compile(&unknown).unwrap_err(), "operator \"Gt\" of label \"a\" is unknown");
}

#[test]
fn all_requirements_are_to_be_met_also_two_of_one_key() {
    let both = selector(&[("a", "1")], vec![expression("b", "Exists", &[])]);
    assert!(matches(&both, &[("a", "1"), ("b", "")]));
    assert!(!matches(&both, &[("a", "1")]) && !matches(&both, &[("b", "")]));
    let never = selector(&[("a", "1")], vec![expression("a", "In", &["2"])]);
    assert!(!matches(&never, &[("a", "1")]) && !matches(&never, &[("a", "2")]));
}

#[test]
fn the_same_in_other_words_is_equal() {
    let words = selector(&[("a", "1")], vec![expression("b", "In", &["2", "1", "2"])]);
    let others = selector(
        &[],
        vec![
            expression("b", "In", &["1", "2"]),
            expression("a", "In", &["1"]),
            expression("a", "In", &["1"]),
        ],
    );
    assert_eq!(words, others);
    assert_eq!(words.equality().map(|(key, _)| &**key), Some("a"), "the fewest values");
}

fn some_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map("[ab]", "[12]", 0..3)
}

fn some_selector() -> impl Strategy<Value = Selector> {
    let operator = prop_oneof![Just("In"), Just("NotIn"), Just("Exists"), Just("DoesNotExist")];
    let one =
        ("[ab]", operator, proptest::collection::vec("[123]", 1..3)).prop_map(|(key, operator, values)| {
            let values = (operator.ends_with("In")).then_some(values);
            LabelSelectorRequirement { key, operator: operator.into(), values }
        });
    proptest::collection::vec(one, 0..3).prop_map(|expressions| selector(&[], expressions))
}

proptest! {
    #[test]
    fn the_index_misses_nothing_and_forgets_all(
        selectors in proptest::collection::vec(some_selector(), 0..8),
        labels in some_labels(),
    ) {
        let mut index = Index::default();
        for (id, selector) in (0..).zip(&selectors) {
            index.insert(selector, id);
        }
        let label = |key: &str| labels.get(key).map(String::as_str);
        let pairs = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let mut found: Vec<u32> = index.candidates(pairs).collect();
        found.sort_unstable();
        prop_assert!(found.windows(2).all(|two| two[0] != two[1]), "each once");
        found.retain(|id| selectors[*id as usize].matches(label));
        let all = (0..).zip(&selectors).filter(|(_, one)| one.matches(label)).map(|(id, _)| id);
        prop_assert_eq!(found, all.collect::<Vec<u32>>());
        for (id, selector) in (0..).zip(&selectors) {
            index.remove(selector, id);
        }
        prop_assert!(index.is_empty());
    }
}
