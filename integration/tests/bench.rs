//! The bench measures every subject in every case and writes it down. No figure is judged here.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::binary;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Removed however the test ends.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Runs one round of it.
fn bench(words: &str) -> Result<Folder> {
    let out = Folder(std::env::temp_dir().join(format!("netd-bench-{}", std::process::id())));
    let output = Command::new(env!("CARGO_BIN_EXE_netd-bench"))
        .args(words.split_whitespace())
        .args(["--quick", "--rounds", "1", "--out"])
        .arg(&out.0)
        .env("NETD_BIN", binary::netd()?)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words}: {}: {text}{said}", output.status);
    Ok(out)
}

/// What was measured: subject and metric.
fn measured(rows: &[Value]) -> BTreeSet<(&str, &str)> {
    rows.iter()
        .filter(|row| row.get("median").and_then(Value::as_f64).is_some_and(f64::is_finite))
        .map(|row| (text_of(row, "subject"), text_of(row, "metric")))
        .collect()
}

/// One after the other: each would spoil the other's time.
#[test]
fn a_quick_bench_has_all_rows() -> Result<()> {
    let out = bench("policy --policies 20")?;
    let rows = rows(&out.0.join("policy.json"))?;
    let alone = measured(&rows);
    for metric in ["established", "new connection", "plan from nothing", "one label here -> epoch", "maps"] {
        ensure!(alone.contains(&("netd, 20", metric)), "{metric}: {alone:?}");
    }
    ensure!(rows.iter().all(|row| row.get("ratio").is_some_and(Value::is_null)), "to whom? {rows:?}");
    drop(out);
    all_cases()
}

fn all_cases() -> Result<()> {
    let out = bench("--services 2 --policies 0,20")?;
    let loads = ["request/response, one CPU", "connect/request/close, one CPU", "one stream, one CPU"];
    for (case, subjects, metrics) in [
        (
            "service",
            &["plain routing", "kube-proxy iptables, 2", "kube-proxy nftables, 2", "netd, 2"][..],
            &loads[..],
        ),
        (
            "nodes",
            &["node <-> node", "plain routing, pod <-> pod", "netd, pod <-> pod", "netd, node <-> node"],
            &loads,
        ),
        (
            "program",
            &["netd pod_egress"],
            &[
                "established, hot, in a loop",
                "reply, hot, in a loop",
                "new connection, hot, in a loop",
                "established, hot, single",
                "reply, hot, single",
                "new connection, hot, single",
            ],
        ),
        (
            "agent",
            &["netd, 2"],
            &["full sync, new tables", "one endpoint -> map, p50", "resident after sync", "maps"],
        ),
        (
            "policy",
            &["netd, 20"],
            &[
                "established",
                "new connection, of it for policies",
                "plan and order of writes from nothing",
                "one label elsewhere -> epoch",
                "one label here -> epoch",
                "resident",
            ],
        ),
        (
            "cni",
            &["bridge + host-local", "netd"],
            &["ADD p50, one at a time", "DEL p99, 32 at a time", "pods, 32 at a time"],
        ),
    ] {
        let rows = rows(&out.0.join(format!("{case}.json")))?;
        let measured = measured(&rows);
        for subject in subjects {
            for metric in metrics {
                ensure!(measured.contains(&(*subject, *metric)), "{case}: {subject}, {metric}: {measured:?}");
            }
        }
    }
    Ok(())
}

fn rows(path: &std::path::Path) -> Result<Vec<Value>> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    let document: Value = serde_json::from_slice(&text)?;
    let rows = document.get("rows").and_then(Value::as_array).cloned().context("no rows")?;
    for row in &rows {
        for key in ["case", "subject", "metric", "unit", "median", "rounds", "ratio", "ratio_to"] {
            ensure!(row.get(key).is_some(), "{}: no {key} in {row}", path.display());
        }
    }
    Ok(rows)
}

fn text_of<'a>(row: &'a Value, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_default()
}
