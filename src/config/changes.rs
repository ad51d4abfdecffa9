//! What a reload changes: which keys, from what to what, and whether that takes a restart.

use super::Config;
use super::keys::{Effect, keys, text};
use serde::Serialize;
use serde_json::Value;
use std::fmt;

/// One changed key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Dotted path of the key.
    pub key: &'static str,
    /// The value in force until now.
    pub old: Value,
    /// The value asked for.
    pub new: Value,
    /// What it takes.
    pub effect: Effect,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = match self.effect {
            Effect::AtOnce => "applies at once",
            Effect::Restart => "needs a restart",
        };
        write!(f, "{}: {} → {} ({effect})", self.key, text(&self.old), text(&self.new))
    }
}

/// All changes between two configurations, in the order of the example file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Changes(Vec<Change>);

impl Changes {
    /// True if the two are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        self.0.iter()
    }

    /// True if some change waits for a restart.
    #[must_use]
    pub fn needs_restart(&self) -> bool {
        self.0.iter().any(|c| c.effect == Effect::Restart)
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, change) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{change}")?;
        }
        Ok(())
    }
}

/// Compares what is in force with what is asked for.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Changes {
    let pairs = keys(old).into_iter().zip(keys(new));
    let changed = pairs.filter(|(old, new)| old.value != new.value);
    Changes(
        changed
            .map(|(old, new)| Change { key: old.path, old: old.value, new: new.value, effect: old.effect })
            .collect(),
    )
}
