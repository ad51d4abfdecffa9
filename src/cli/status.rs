//! `netd status`: how the agent is, as it says itself (`GET /v1/status`).

use super::client::{self, Query};
use super::{Exit, output};
use crate::config::Loader;
use serde_json::Value;

pub(super) fn run(query: &Query, loader: &Loader) -> anyhow::Result<Exit> {
    let status = client::get(&query.socket(loader)?, "/v1/status")?;
    match query.output {
        output::Format::Json => output::json(&status)?,
        output::Format::Text => output::text(&lines(&status))?,
    }
    // An agent that runs but is not well says `"ok": false`.
    Ok(if status.get("ok") == Some(&Value::Bool(false)) { Exit::Failed } else { Exit::Ok })
}

/// One line per value, named by its path.
fn lines(status: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", status, &mut rows);
    output::table(&rows)
}

fn flatten(path: &str, value: &Value, rows: &mut Vec<[String; 2]>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| flatten(&below(name), value, rows)),
        Value::Array(items) if items.iter().any(|v| v.is_object() || v.is_array()) => {
            items.iter().enumerate().for_each(|(i, value)| flatten(&below(&i.to_string()), value, rows));
        }
        value => rows.push([path.to_owned(), scalar(value)]),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_line() {
        let status = serde_json::json!({
            "ok": true, "ipam": {"ranges": ["10.0.0.0/24", "fd00::/64"], "used": 3}, "pending": [],
            "tasks": [{"name": "cni"}, {"name": "routes", "error": null}],
        });
        insta::assert_snapshot!(lines(&status), @r"
        ipam.ranges    10.0.0.0/24, fd00::/64
        ipam.used      3
        ok             true
        pending        -
        tasks.0.name   cni
        tasks.1.error  -
        tasks.1.name   routes
        ");
    }
}
