//! Network configuration lists and the section each plugin gets.

use super::Attachment;
use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

/// A conflist.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// `name`.
    pub name: String,
    /// The version agreed on.
    pub version: String,
    /// `disableCheck`.
    pub disable_check: bool,
    /// `disableGC`.
    pub disable_gc: bool,
    /// `plugins`.
    pub plugins: Vec<Map<String, Value>>,
}

impl NetworkConfig {
    /// The first `*.conflist` of a folder by name. `newest` is what the runtime speaks at best.
    pub(super) fn first_in(folder: &Path, newest: &str) -> Result<Self> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "conflist") {
                paths.push(path);
            }
        }
        paths.sort();
        let Some(path) = paths.first() else { bail!("no conflist in {}", folder.display()) };
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text, newest).with_context(|| path.display().to_string())
    }

    fn parse(text: &[u8], newest: &str) -> Result<Self> {
        let list: Map<String, Value> = serde_json::from_slice(text)?;
        let string = |key: &str| list.get(key).and_then(Value::as_str).map(str::to_owned);
        let flag = |key: &str| list.get(key).and_then(Value::as_bool).unwrap_or(false);
        let base = string("cniVersion").context("no cniVersion")?;
        // Version numbers of the specification compare as text.
        let offered = list.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
        let version = offered
            .filter_map(Value::as_str)
            .chain([base.as_str()])
            .filter(|version| *version <= newest)
            .max()
            .with_context(|| format!("cniVersion {base} is newer than {newest}"))?
            .to_owned();
        let plugins = list.get("plugins").and_then(Value::as_array).context("no plugins")?;
        Ok(Self {
            name: string("name").context("no name")?,
            version,
            disable_check: flag("disableCheck"),
            disable_gc: flag("disableGC"),
            plugins: plugins
                .iter()
                .map(|plugin| plugin.as_object().cloned().context("a plugin that is no object"))
                .collect::<Result<_>>()?,
        })
    }

    /// What a plugin gets on its standard input.
    pub(super) fn section(
        &self,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
        attachment: Option<&Attachment>,
        extra: &Map<String, Value>,
    ) -> Value {
        let mut conf = plugin.clone();
        conf.insert("name".into(), self.name.clone().into());
        conf.insert("cniVersion".into(), self.version.clone().into());
        if let Some(previous) = previous {
            conf.insert("prevResult".into(), previous.clone());
        }
        let wanted = plugin.get("capabilities").and_then(Value::as_object);
        if let (Some(wanted), Some(attachment)) = (wanted, attachment) {
            let asked = |key: &str| wanted.get(key).and_then(Value::as_bool) == Some(true);
            let given: Map<String, Value> = attachment
                .capabilities
                .iter()
                .filter(|(key, _)| asked(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            if !given.is_empty() {
                conf.insert("runtimeConfig".into(), given.into());
            }
        }
        conf.extend(extra.clone());
        conf.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list() -> String {
        json!({"name": "n", "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
               "plugins": [{"type": "x", "capabilities": {"portMappings": true, "bandwidth": false}}]})
        .to_string()
    }

    #[test]
    fn the_newest_version_that_both_know() {
        for (newest, agreed) in [("1.1.0", "1.1.0"), ("1.0.0", "1.0.0"), ("0.4.0", "0.4.0")] {
            assert_eq!(NetworkConfig::parse(list().as_bytes(), newest).unwrap().version, agreed);
        }
        assert!(NetworkConfig::parse(list().as_bytes(), "0.3.1").is_err());
    }

    #[test]
    fn only_declared_capabilities_are_passed() {
        let network = NetworkConfig::parse(list().as_bytes(), "1.1.0").unwrap();
        let mut attachment = Attachment::of_pod("c", "/x".into(), "ns", "p");
        for key in ["portMappings", "bandwidth", "ipRanges"] {
            attachment.capabilities.insert(key.into(), json!(key));
        }
        let previous = json!({"ips": []});
        let conf = network.section(&network.plugins[0], Some(&previous), Some(&attachment), &Map::new());
        assert_eq!(conf["runtimeConfig"], json!({"portMappings": "portMappings"}));
        assert_eq!(conf["prevResult"], previous);
        assert_eq!((&conf["name"], &conf["cniVersion"]), (&json!("n"), &json!("1.1.0")));
    }
}
