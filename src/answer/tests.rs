//! The schemas: their shapes are pinned, read back what was written, and are documented field by field.

use super::conntrack::{Head, Line, State, Summary, Table, Tail};
use super::event::Kind;
use super::policy::{Direction, Effect, Evaluated, Explained, Policies};
use super::services::{BackendState, Shown};
use super::*;
use serde_json::json;
use std::collections::BTreeSet;

/// Keys below these are names of things, not of fields.
const MAPS: [&str; 9] =
    ["uplinks", "packets", "flow_events", "cni", "pending", "tasks", "tables", "events", "lifetimes_seconds"];

/// All paths with the kinds of their values.
fn shape(path: &str, value: &Value, out: &mut BTreeSet<String>) {
    // Of a list, the key ends in brackets, and is none of these.
    let key = path.rsplit('.').next().unwrap_or_default();
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = if MAPS.contains(&key) { "*" } else { name };
                shape(&format!("{path}.{name}"), value, out);
            }
        }
        Value::Array(items) => {
            out.insert(format!("{path}: array"));
            items.iter().for_each(|item| shape(&format!("{path}[]"), item, out));
        }
        Value::Null => drop(out.insert(format!("{path}: null"))),
        Value::Bool(_) => drop(out.insert(format!("{path}: boolean"))),
        Value::Number(_) => drop(out.insert(format!("{path}: number"))),
        Value::String(_) => drop(out.insert(format!("{path}: string"))),
    }
}

/// One or more documents of each schema, as the agent writes them.
fn documents() -> Vec<(&'static str, Vec<Value>)> {
    fn of<T: Answer>(body: &T) -> Value {
        serde_json::to_value(document(body)).expect("JSON")
    }
    let mut conntrack = of(&Head { node: "node-1".to_owned(), limit: Some(1000) });
    conntrack["flows"] = json!(samples::flows());
    let tail = json!(Tail { matched: 12, told: 3 });
    conntrack.as_object_mut().expect("an object").extend(tail.as_object().expect("an object").clone());
    vec![
        (status::Status::SCHEMA, vec![of(&samples::status()), of(&samples::degraded())]),
        (endpoints::Endpoints::SCHEMA, vec![of(&samples::endpoints())]),
        (services::Services::SCHEMA, vec![of(&samples::services())]),
        (
            Shown::SCHEMA,
            vec![of(&samples::service()), of(&samples::differing_service()), of(&samples::refused_service())],
        ),
        (Policies::SCHEMA, vec![of(&samples::policies()), of(&samples::folder_policies())]),
        (policy::Shown::SCHEMA, vec![of(&samples::policy()), of(&samples::denying_policy())]),
        (
            Explained::SCHEMA,
            vec![of(&samples::explained()), of(&samples::closed_pod()), of(&samples::exempt_pod())],
        ),
        (
            Evaluated::SCHEMA,
            vec![of(&samples::evaluated()), of(&samples::evaluated_by_family()), of(&samples::exempt_flow())],
        ),
        (Head::SCHEMA, vec![conntrack]),
        (Summary::SCHEMA, vec![of(&samples::summary())]),
        (event::Event::SCHEMA, samples::events().iter().map(of).collect()),
        (event::Drops::SCHEMA, vec![of(&samples::drops())]),
    ]
}

#[test]
fn shapes_change_only_with_their_version() {
    let mut all = String::new();
    for (schema, documents) in documents() {
        let mut paths = BTreeSet::new();
        documents.iter().for_each(|document| shape("", document, &mut paths));
        all.push_str(&format!("{schema}\n"));
        paths.iter().for_each(|path| all.push_str(&format!("  {}\n", path.trim_start_matches('.'))));
    }
    insta::assert_snapshot!("shapes", all);
}

/// All strings and keys of a document, each with the key before it.
fn words(key: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            out.push(("key".to_owned(), name.clone()));
            words(name, value, out);
        }),
        Value::Array(items) => items.iter().for_each(|item| words(key, item, out)),
        Value::String(text) => out.push((key.to_owned(), text.clone())),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn keys_and_states_are_one_word_and_services_have_one_form() {
    let snake = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let mut all = Vec::new();
    for (_, documents) in documents() {
        documents.iter().for_each(|document| words("", document, &mut all));
    }
    for (key, text) in &all {
        match key.as_str() {
            "key" => assert!(!text.contains(' '), "{text:?}"),
            "state" | "table" | "kind" | "part" | "level" | "lacks" | "direction" | "isolates" => {
                assert!(snake(text), "{key}: {text}");
            }
            "service" => assert!(text.starts_with("shop/") && !text.contains(':'), "{text}"),
            "protocol" => assert!(snake(text), "{text}"),
            _ => {}
        }
    }
    for state in <State as clap::ValueEnum>::value_variants() {
        assert_eq!(json!(state), state.name());
    }
}

#[test]
fn what_is_written_is_read_back() {
    fn back<T: Answer + PartialEq + std::fmt::Debug>(body: &T) {
        let text = serde_json::to_string(&document(body)).expect("JSON");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["schema"], T::SCHEMA);
        assert_eq!(read::<T>(&value).expect("read"), *body);
    }
    back(&samples::status());
    back(&samples::degraded());
    back(&samples::endpoints());
    back(&samples::services());
    back(&samples::service());
    back(&samples::refused_service());
    back(&samples::policies());
    back(&samples::policy());
    back(&samples::explained());
    back(&samples::exempt_pod());
    back(&samples::evaluated());
    back(&samples::summary());
    back(&samples::drops());
    samples::events().iter().for_each(back);
    for line in samples::flows().into_iter().map(|flow| Line::Flow(Box::new(flow))) {
        let text = serde_json::to_string(&line).expect("JSON");
        assert_eq!(serde_json::from_str::<Line>(&text).expect("read"), line);
    }
}

#[test]
fn a_newer_field_is_no_trouble_and_a_newer_version_is_named() {
    let mut value = serde_json::to_value(document(&samples::endpoints())).expect("JSON");
    value["endpoints"][0]["colour"] = json!("blue");
    assert_eq!(read::<endpoints::Endpoints>(&value).expect("read"), samples::endpoints());
    value["schema"] = json!("netd.endpoints/v2");
    let error = read::<endpoints::Endpoints>(&value).expect_err("another version").to_string();
    assert_eq!(
        error,
        "the agent answers in netd.endpoints/v2, this netd reads netd.endpoints/v1: ask with the agent's own netd"
    );
    let error = read::<endpoints::Endpoints>(&json!({})).expect_err("none").to_string();
    assert!(error.starts_with("the agent answers in no schema at all"), "{error}");
}

/// The part of the documentation under the schema's heading.
fn section<'a>(text: &'a str, schema: &str) -> &'a str {
    let heading = format!("## `{schema}`");
    let start = text.find(&heading).unwrap_or_else(|| panic!("docs/questions.md has no {heading}"));
    let rest = &text[start + heading.len()..];
    rest.split("\n## ").next().unwrap_or_default()
}

#[test]
fn every_field_is_documented() {
    let text = include_str!("../../docs/questions.md");
    for (schema, documents) in documents() {
        let section = section(text, schema);
        let mut paths = BTreeSet::new();
        documents.iter().for_each(|document| shape("", document, &mut paths));
        for path in paths {
            let path = path.split(':').next().unwrap_or_default();
            for name in path.split('.').map(|name| name.trim_end_matches("[]")) {
                let known = ["", "*", "schema"].contains(&name) || section.contains(&format!("`{name}`"));
                assert!(known, "docs/questions.md does not tell `{name}` of {schema} ({path})");
            }
        }
    }
    let words: Vec<String> = [
        [
            Kind::Drop,
            Kind::Flow,
            Kind::Lost,
            Kind::Cni,
            Kind::Service,
            Kind::Route,
            Kind::Uplink,
            Kind::Source,
            Kind::Flows,
            Kind::Agent,
        ]
        .map(|kind| json!(kind))
        .to_vec(),
        [State::Opening, State::Established, State::HalfClosed, State::Closed, State::OneWay, State::TwoWay]
            .map(|state| json!(state))
            .to_vec(),
        [Table::Established, Table::Nursery].map(|table| json!(table)).to_vec(),
        [BackendState::Active, BackendState::Left, BackendState::Missing, BackendState::Unwanted]
            .map(|state| json!(state))
            .to_vec(),
        [
            services::State::Ok,
            services::State::NoEndpoints,
            services::State::Pending,
            services::State::Waiting,
            services::State::Refused,
            services::State::Conflict,
            services::State::Differs,
            services::State::NotServed,
        ]
        .map(|state| json!(state))
        .to_vec(),
        [Direction::Ingress, Direction::Egress].map(|direction| json!(direction)).to_vec(),
        [Effect::InForce, Effect::Pending, Effect::Closed].map(|effect| json!(effect)).to_vec(),
    ]
    .concat()
    .iter()
    .map(|word| word.as_str().expect("a string").to_owned())
    .collect();
    for word in words {
        assert!(text.contains(&format!("`{word}`")), "docs/questions.md does not tell the value `{word}`");
    }
}
