//! Configuration of logs.

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Validated: `filter` parses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A `tracing` filter such as `info` or `netd::cni=debug,info`.
    pub filter: String,
    /// Shape of a line.
    pub format: Format,
}
