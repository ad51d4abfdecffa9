//! `netd monitor` in the background, and what it has said so far.

use super::Node;
use crate::lab::Process;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// A running monitor.
#[derive(Debug)]
pub struct Monitor {
    /// Its process.
    pub process: Process,
    log: PathBuf,
}

impl Monitor {
    /// Starts `netd monitor WORDS` on a node. Nobody says when it is there: it is once it tells something.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn start(node: &Node<'_>, name: &str, words: &[&str]) -> Result<Self> {
        let log = node.dir().join(format!("{name}.log"));
        let mut command = node.binary()?;
        command.arg("monitor").args(words).arg("--socket").arg(node.socket());
        Ok(Self { process: Process::start(node.namespace(), name, &mut command, &log)?, log })
    }

    /// All that it has said.
    ///
    /// # Errors
    /// Its log cannot be read.
    pub fn said(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))
    }

    /// Its lines so far that are whole JSON documents of this kind.
    ///
    /// # Errors
    /// As [`Monitor::said`].
    pub fn events(&self, kind: &str) -> Result<Vec<Value>> {
        let said = self.said()?;
        let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(events.filter(|event| event.get("kind").is_some_and(|is| is == kind)).collect())
    }
}
